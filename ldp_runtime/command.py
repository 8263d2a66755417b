"""What the command lines have in common: a command runs, and its end becomes an exit code and a line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from ldp_runtime.errors import LDPError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


class CheckFailedError(Exception):
    """A check that the command was asked for did not pass; the message says which."""


def run(program: str, parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    """Parses arguments and runs the command that they name.

    Args:
        program: The program's name, which begins each line on stderr.
        parser: Makes the parser; it sets `command`, a function of the parsed arguments.
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code: 0 done, 1 a failed check or a bug, 2 an error of the user's, 130 interrupted, 141 when whoever
        read the output left.
    """
    try:
        arguments = parser().parse_args(argv)
        arguments.command(arguments)
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
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output left; without this Python would complain while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except Exception:
        traceback.print_exc()
        print(f"{program}: this is a bug; please report the lines above and the output of `ldp info`", file=sys.stderr)
        return EXIT_FAILED
