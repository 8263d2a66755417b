"""What the command lines share: one module per command, and the end of a command as an exit code and a line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import keyword
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from ldp_runtime import __version__
from ldp_runtime.errors import LDPError
from ldp_runtime.files import cannot_write, is_disk_error

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141

_EXIT_CODES = """\
exit codes:
  0    done
  1    a check failed, some pairs of a batch failed, or a bug in ldp; lines on stderr say which
  2    something to fix: a file, an option, the disk or the installation; one line on stderr says what
  130  interrupted with Ctrl-C
  141  the reader of the output, such as `head`, left before its end
An output file is whole or not there, whatever the exit code; one that was there before stays until then.
"""


class CheckFailedError(Exception):
    """A check that the command was asked for did not pass; the message says which."""


class Command(Protocol):
    """A module of a command. It imports heavy packages inside its functions, so that help is instant.

    Attributes:
        HELP: One line on what the command does.
        EXAMPLES: Examples and notes, below the options.
    """

    HELP: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""

    def run(self, arguments: argparse.Namespace) -> None:
        """Does the work; raises LDPError for what the user has to fix."""


def make_parser(program: str, description: str, package: str, commands: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a program.

    Args:
        program: Its name.
        description: Its purpose, a line.
        package: Package of the command modules.
        commands: Names of the commands; that of ``blur-map`` is in the module ``blur_map``, of ``import`` in
            ``import_``.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=program, description=description, epilog=_EXIT_CODES, formatter_class=form)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in commands:
        module = name.replace("-", "_") + "_" * keyword.iskeyword(name)
        command = cast(Command, importlib.import_module(f"{package}.{module}"))
        subparser = added.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=f"{command.EXAMPLES}\n{_EXIT_CODES}",
            formatter_class=form,
        )
        subparser.set_defaults(command=command.run)
        command.add_arguments(subparser)
    return parser


def run(program: str, parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    """Parses arguments and runs the command that they name.

    Args:
        program: The program's name, with which each line on stderr begins.
        parser: Makes the parser; it sets ``command``, a function of the parsed arguments.
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code: 0 done, 1 a failed check or a bug, 2 an error that the user can fix, 130 interrupted, 141 when
        the reader of the output left.
    """
    try:
        arguments = parser().parse_args(argv)
        arguments.command(arguments)
        if sys.stdout is not None:  # None if it was closed before we started
            sys.stdout.flush()
        return EXIT_OK
    except SystemExit as stop:  # argparse: after help or version, or for wrong arguments
        return stop.code if isinstance(stop.code, int) else EXIT_USER_ERROR
    except LDPError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except CheckFailedError as error:
        print(f"{program}: failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except MemoryError:
        print(f"{program}: error: out of memory; give smaller images or close other programs", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as stop:  # a command may add its progress
        print(": ".join([f"{program}: interrupted", *map(str, stop.args)]), file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_CLOSED_PIPE
    except Exception as error:
        if is_disk_error(error):  # full, read-only or failing, and nothing below named the file
            print(f"{program}: error: {cannot_write(error.filename or 'the output', error)}", file=sys.stderr)
            _drop_stdout()
            return EXIT_USER_ERROR
        traceback.print_exc()
        print(
            f"{program}: this is a bug; please report the lines above and the output of `ldp selftest`", file=sys.stderr
        )
        return EXIT_FAILED


def _drop_stdout() -> None:
    """Discards the rest of the buffer, about which Python would print an error while it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
