"""Makes reStructuredText of the code's docstrings, which are written as plain text.

What would be markup by accident is escaped (`*`, `|`, a trailing `_`), drawings and
code are kept as they stand, and sections in Google's form are left to napoleon.
"""

import re
from collections.abc import Mapping, Sequence

from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Note|Example):$")
_QUOTED = re.compile(r"(``.+?``|`[^`]+`)")
_LIST = re.compile(r"([-*]|\d+\.) ")


def to_rst(lines: Sequence[str], links: Mapping[str, str]) -> list[str]:
    """Returns the lines of a docstring as reStructuredText.

    Args:
        lines: Without the indentation that they share.
        links: What names in backticks link to; others are shown as code.
    """
    result: list[str] = []
    section = False
    for paragraph in _paragraphs(lines):
        if not paragraph[0].startswith(" "):
            section = _SECTION.match(paragraph[0]) is not None
        if not section and _is_drawing(paragraph):
            result += ["::", "", *(f"    {line}" for line in paragraph), ""]
            continue
        header = paragraph[:1] if _SECTION.match(paragraph[0]) else []
        text = "\n".join(paragraph[len(header) :])
        result += [*header, *_escape(text, links).split("\n"), ""]
    return result


def _paragraphs(lines: Sequence[str]) -> list[list[str]]:
    """Groups of lines between empty ones; a fence of ``` is one group."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line.rstrip())
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def _is_drawing(paragraph: list[str]) -> bool:
    """Whether line breaks and blanks matter: code, commands, drawings."""
    if _LIST.match(paragraph[0].lstrip()):
        return False
    return any(line.startswith(" ") or "  " in line.strip() for line in paragraph)


def _escape(text: str, links: Mapping[str, str]) -> str:
    parts = _QUOTED.split(text)
    for number, part in enumerate(parts):
        if number % 2:
            # "`Rule`s": markup must be set apart from letters.
            apart = r"\ " if parts[number + 1][:1].isalnum() else ""
            parts[number] = _quoted(part, links) + apart
            continue
        part = re.sub(r"([\\`|*])", r"\\\1", part)
        part = re.sub(r"^( *)\\\*(?= )", r"\1*", part, flags=re.MULTILINE)  # lists
        parts[number] = re.sub(r"_(?![A-Za-z0-9_])", r"\\_", part)
    return "".join(parts)


def _quoted(text: str, links: Mapping[str, str]) -> str:
    name = text.strip("`")
    if name in links:
        return f":py:obj:`{name} <{links[name]}>`"
    return f"``{name}``"


def _process(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = to_rst(lines, app.env.docstring_links)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _process, priority=400)  # napoleon has 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
