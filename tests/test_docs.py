"""The Markdown pages: links and anchors lead somewhere; commands, options and paths exist."""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.__main__ import _parser as benchmarks_parser
from benchmarks.harness.results import Report
from benchmarks.harness.tables import significant
from benchmarks.report.tables import roofline_table
from ldp_export.cli import COMMANDS as EXPORT_COMMANDS
from ldp_runtime.cli import COMMANDS as RUNTIME_COMMANDS
from ldp_runtime.command import make_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "samples/*.md", "models/**/*.md")
    for path in ROOT.glob(pattern)
)
README_LINES = 170
FOLDERS = "benchmarks|docs|examples|ldp_export|ldp_runtime|models|samples|tests"
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMANDS = {"ldp": RUNTIME_COMMANDS, "ldp-export": EXPORT_COMMANDS, "python -m benchmarks": BENCHMARKS}


@cache
def parser(program: str, command: str) -> argparse.ArgumentParser:
    """The parser of a program, with the options of a command."""
    if program == "python -m benchmarks":
        return benchmarks_parser(command)
    package = {"ldp": "ldp_runtime", "ldp-export": "ldp_export"}[program]
    return make_parser(program, "", f"{package}.commands", tuple(COMMANDS[program]))


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """The program of a command, and its arguments; the program is empty where it is none of ours."""
    line = " ".join(words)
    if line.startswith("torchrun"):
        line = "ldp-export " + line.partition("-m ldp_export ")[2]
    program = max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len, default="")
    return program, line[len(program) :].split()


def prose(page: str) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [found[2] for found in BLOCK.finditer(text) if found[1] == language]


def spans(page: str) -> list[str]:
    """The inline code of a page."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


@cache
def anchors(page: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_commands(page: str) -> Iterator[list[str]]:
    """The words of each command in the shell blocks of a page, without comments and variables."""
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|")), len(words))
            command = words[:end]
            while command and re.match(r"\w+=", command[0]):
                del command[0]
            yield command
            words = words[end + 1 :]


def answer(program: str, arguments: list[str]) -> tuple[str, str]:
    """What the program's parser writes to stdout and stderr for these arguments: help, an error, or nothing."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), contextlib.suppress(SystemExit):
        parser(program, arguments[0]).parse_args(arguments)
    return stdout.getvalue(), stderr.getvalue()


def help_text(program: str, arguments: list[str]) -> str:
    """The help of the command that begins with these arguments; empty where there is none."""
    command = itertools.takewhile(lambda word: not word.startswith("-"), arguments)
    return answer(program, [*command, "--help"])[0]


def has_target(name: str) -> bool:
    return re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE) is not None


@pytest.mark.parametrize("program", COMMANDS)
def test_examples_in_help_are_real(program: str) -> None:
    for command in COMMANDS[program]:
        text = help_text(program, [command]).replace("\\\n", " ")
        examples = re.findall(rf"^  {program} ([^|>$\n]*)$", text, re.MULTILINE)
        assert examples, command
        assert not any(answer(program, shlex.split(example))[1] for example in examples)


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        inside = path.is_relative_to(ROOT) and path.exists()
        if not inside or (anchor and anchor not in anchors(path.relative_to(ROOT).as_posix())):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_code_blocks_are_real(page: str) -> None:
    wrong = []
    for words in shell_commands(page):
        program, arguments = program_of(words)
        if program:
            wrong.append(answer(program, arguments)[1])
        elif words[0] == "make" and not has_target(words[1]):
            wrong.append(f"make has no target {words[1]}")
        elif words[:2] == ["python", "-m"] and importlib.util.find_spec(words[2]) is None:
            wrong.append(f"there is no module {words[2]}")
        elif words[0] == "python" and "/" in words[1] and not (ROOT / words[1]).is_file():
            wrong.append(f"there is no file {words[1]}")
    assert not any(wrong)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # it names what is gone
def test_code_in_the_text_names_what_exists(page: str) -> None:
    """Commands with their options, targets of make, and files; words in capitals are placeholders."""
    wrong = []
    for span in spans(page):
        words = span.split()
        program, arguments = program_of(words)
        if program and arguments and not arguments[0].isupper():
            text = help_text(program, arguments)
            real = text and all(word in text for word in arguments if word.startswith("--"))
        elif words[0] == "make" and len(words) > 1:
            real = has_target(words[1])
        elif re.fullmatch(rf"(?!.*NAME)(?:{FOLDERS})/[\w./*-]+", span):
            real = any(ROOT.glob(span.rstrip("/")))
        else:
            continue
        if not real:
            wrong.append(span)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile_and_import_what_exists(page: str) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ldp_"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names)


def test_the_speed_table_of_the_readme_is_that_of_the_benchmarks() -> None:
    """The README repeats three columns of the table that ``benchmarks report`` writes."""
    table = re.search(
        r"bench:latency-ldp-nano -->(.*?)<!--", (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert table is not None
    measured = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines() if "|" in line]
    seconds = {(row[0], row[1]): row[2] for row in measured}
    peak = {(row[0], row[1]): row[-1] for row in measured}
    rows = re.findall(r"^\| (\S+ (?:bf16|fp32|int8)) \| (\S+) \| (\S+) \| (\S+) \|$", prose("README.md"), re.MULTILINE)
    assert len(rows) >= 4
    for name, small, large, mebibytes in rows:
        assert (small, large) == (seconds["560x840", name], seconds["1120x1680", name])
        assert mebibytes == peak["1120x1680", name]


def test_the_gains_on_photographs_of_the_readme_are_those_of_the_report() -> None:
    """The README repeats plain and matched gains of the table that ``benchmarks report`` writes."""
    page = (ROOT / "docs/training-and-evaluation.md").read_text(encoding="utf-8")
    table = re.search(r"bench:photographs-ldp-nano -->(.*?)<!--", page, re.DOTALL)
    assert table is not None
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines() if "|" in line]
    gains = {(row[0], row[1]): tuple(row[2:4]) for row in rows}
    quoted = re.findall(r"^\|.*\| ([+-]\d\.\d\d) \| ([+-]\d\.\d\d) \|$", prose("README.md"), re.MULTILINE)
    ours, theirs = "ldp-nano, as it is", "DPDNet"
    assert quoted == [gains["dpdd, 7", ours], gains["dpdd, 7", theirs], gains["pixel4, 6", ours]]


@pytest.mark.parametrize("bundle", ["ldp-nano", "ldp-small-random", "ldp-fast-random", "ldp-fast-large-random"])
def test_the_predicted_floors_of_the_docs_are_those_of_the_reports(bundle: str) -> None:
    page, name = prose("docs/benchmarks.md"), bundle.removeprefix("ldp-").removesuffix("-random")
    report = Report.read(ROOT / "benchmarks" / "reports" / f"roofline-{bundle}.json")
    assert roofline_table(report) in page
    data = report.data
    stages = {row["what"]: row for row in data["stages"]}
    (card,) = (row for row in data["devices"] if row["device"] == data["device"]["name"])
    figures = [
        significant(sum(stages[name][key] for name in names) / scale)
        for names in (("head", "deblur"), ("clip",))
        for key, scale in (("mb", 1e3), ("ms", 1))
    ]
    figures += [significant(card[key]) for key in ("floor_ms", "fp32_accumulate_ms", "cached_ms")]
    assert figures[-3] in re.findall(
        r"[\d.]+", prose("README.md").partition("The layers that TensorRT-RTX plans")[2].partition(":")[0]
    )
    row, _ = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))  # the other is of two streams
    assert row.split(" | ")[-7:] == [*figures[:-1], f"{figures[-1]} |"]
    beside = [row for row in data["beside"]["rows"] if row["device"] == card["device"] and not row["cached"]]
    cells = [significant(row["at_best_ms"]) for row in beside]
    assert f"| `{name}` | {' | '.join(cells)} |" in page
