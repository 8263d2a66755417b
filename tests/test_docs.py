"""The Markdown pages: links and anchors lead somewhere; commands, options and paths exist."""

from __future__ import annotations

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
COMMANDS = {"ldp": RUNTIME_COMMANDS, "ldp-export": EXPORT_COMMANDS}
PARSERS = {
    "ldp": make_parser("ldp", "", "ldp_runtime.commands", RUNTIME_COMMANDS),
    "ldp-export": make_parser("ldp-export", "", "ldp_export.commands", EXPORT_COMMANDS),
}


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


def usage_error(program: str, arguments: list[str]) -> str:
    """What the program's parser says against these arguments; nothing where it takes them."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            PARSERS[program].parse_args(arguments)
    except SystemExit as stop:
        return stderr.getvalue() if stop.code else ""
    return ""


def help_text(words: list[str]) -> str:
    """The help of the command that begins with these words; empty where there is none."""
    arguments = list(itertools.takewhile(lambda word: not word.startswith("-"), words[1:]))
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        PARSERS[words[0]].parse_args([*arguments, "--help"])
    return stdout.getvalue()


def has_target(name: str) -> bool:
    return re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE) is not None


@pytest.mark.parametrize("program", PARSERS)
def test_examples_in_help_are_real(program: str) -> None:
    for command in COMMANDS[program]:
        text = help_text([program, command]).replace("\\\n", " ")
        examples = re.findall(rf"^  {program} ([^|>$\n]*)$", text, re.MULTILINE)
        assert examples
        assert not any(usage_error(program, shlex.split(example)) for example in examples)


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
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
            words[0] = words[0].replace("_", "-")
        if words[0] in PARSERS:
            wrong.append(usage_error(words[0], words[1:]))
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
        if words[0] in PARSERS and len(words) > 1 and not words[1].isupper():
            options = [word for word in words if word.startswith("--")]
            if not help_text(words) or any(option not in help_text(words) for option in options):
                wrong.append(span)
        elif words[0] == "make" and len(words) > 1 and not has_target(words[1]):
            wrong.append(span)
        elif re.fullmatch(rf"(?:{FOLDERS})/[\w./*-]+", span) and "NAME" not in span:
            if not list(ROOT.glob(span.rstrip("/"))):
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
    table = re.search(r"bench:latency-ldp-nano -->(.*?)<!--", (ROOT / "docs/benchmarks.md").read_text(), re.DOTALL)
    assert table is not None
    measured = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines() if "|" in line]
    seconds = {(row[0], row[1]): row[2] for row in measured}
    peak = {(row[0], row[1]): row[-1] for row in measured}
    rows = re.findall(r"^\| (\S+ (?:fp32|int8)) \| (\S+) \| (\S+) \| (\S+) \|$", prose("README.md"), re.MULTILINE)
    assert len(rows) >= 4
    for name, small, large, mebibytes in rows:
        assert (small, large) == (seconds["560x840", name], seconds["1120x1680", name])
        assert mebibytes == peak["1120x1680", name]
