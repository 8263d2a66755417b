"""Markdown of the results as HTML."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path


def markdown_to_html(path: Path, last: str = "") -> str:
    """A Markdown file of headings, tables, lists, pictures and paragraphs as HTML.

    Args:
        path: The file; its pictures are PNG files beside it, and go into the HTML.
        last: CSS class of its last block.
    """
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())
    classes = [*[""] * (len(blocks) - 1), last]
    return "\n".join(_block(block, path.parent, css) for block, css in zip(blocks, classes, strict=True))


def paragraph(text: str, css: str = "") -> str:
    """A paragraph of Markdown as HTML, with a CSS class."""
    attribute = f' class="{css}"' if css else ""
    return f"<p{attribute}>{_inline(text)}</p>"


def _block(block: str, folder: Path, css: str) -> str:
    lines = block.strip().splitlines()
    if picture := re.fullmatch(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)", block.strip()):
        content = base64.b64encode((folder / picture[2]).read_bytes()).decode()
        return f'<img alt="{html.escape(picture[1])}" src="data:image/png;base64,{content}">'
    if heading := re.match(r"(#+) (.*)", lines[0]):
        level = min(len(heading[1]) + 1, 6)
        rest = "\n".join(lines[1:])
        title = f"<h{level}>{_inline(heading[2])}</h{level}>"
        return title + (f"\n{_block(rest, folder, css)}" if rest.strip() else "")
    if lines[0].startswith("|"):
        return _table(lines)
    if lines[0].startswith(("* ", "- ")):
        items = re.split(r"\n[*-] ", block.strip()[2:])
        return "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in items) + "\n</ul>"
    return paragraph(block, css)


def _table(lines: Sequence[str]) -> str:
    def split(line: str) -> list[str]:
        return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]

    right = [mark.endswith(":") for mark in split(lines[1])]

    def row(line: str, tag: str) -> str:
        cells = []
        for number, cell in enumerate(split(line)):
            css = ' class="r"' if number < len(right) and right[number] else ""
            cells.append(f"<{tag}{css}>{_inline(cell.replace(chr(92) + '|', '|'))}</{tag}>")
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(row(line, "td") for line in lines[2:])
    return f'<div class="scroll"><table>\n{row(lines[0], "th")}\n{body}\n</table></div>'


def _inline(text: str) -> str:
    """Text with ``code``, **bold** and the text of [links](…)."""
    escaped = html.escape(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text), quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
