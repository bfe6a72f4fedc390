"""The snippets of the documentation: fenced blocks, and what is to be done with each.

A line before a block says what is special about it, as a comment of HTML that readers
do not see: `<!-- run -->` runs commands in place of checking them, `<!-- not run: WHY
-->` leaves a block alone.
"""

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<info>.*)$")
_MARK = re.compile(r"<!-- (?P<word>run|not run)(?:: (?P<why>.+))? -->")


@dataclasses.dataclass(frozen=True)
class Snippet:
    """One fenced block.

    Attributes:
        path: The page.
        line: Number of the block's first line, from 1.
        language: What stands behind the fence, or "".
        text: The block.
        mark: "run", "not run" or "".
        why: The reason of "not run".
    """

    path: pathlib.Path
    line: int
    language: str
    text: str
    mark: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def pages() -> list[pathlib.Path]:
    """Every page of the documentation that is written by hand."""
    tops = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    docs = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return tops + sorted(path for path in docs if "_build" not in path.parts)


def snippets(path: pathlib.Path) -> list[Snippet]:
    """The fenced blocks of a page, directives of Sphinx left out.

    Raises:
        ValueError: A block is not closed.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    found, number = [], 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if not fence:
            number += 1
            continue
        start, end = number + 1, fence["indent"] + fence["ticks"]
        if end not in lines[start:]:
            raise ValueError(f"{path}:{number + 1}: the block is not closed.")
        number = lines.index(end, start)
        body = [line.removeprefix(fence["indent"]) for line in lines[start:number]]
        number += 1
        language = fence["info"].strip()
        if not language.startswith("{"):
            mark = _mark(lines[: start - 1])
            text = "\n".join(body) + "\n"
            found.append(Snippet(path, start + 1, language, text, *mark))
    return found


def _mark(before: list[str]) -> tuple[str, str]:
    last = next((line for line in reversed(before) if line.strip()), "")
    mark = _MARK.fullmatch(last.strip())
    return (mark["word"], mark["why"] or "") if mark else ("", "")


def commands(text: str) -> list[list[str]]:
    """The commands of a block of shell, as lists of words, comments removed."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                command.append(word)
            elif command:
                found.append(command)
                command = []
    return found
