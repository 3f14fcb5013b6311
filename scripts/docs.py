"""Check the pages for people: links lead somewhere, what they name of the repository is there, and each command is
either run by a test or marked as an example.

    python -m scripts.docs

Looked at are README.md, CHANGELOG.md and docs/: relative links with their anchors, paths in backticks that begin with
a folder of the repository, with the name in that file where one follows, as the walks of docs/contributing.md have it;
and blocks of commands and code, with the comment that says what holds them true. One comment of

    <!-- commands: run -->                       the test of this page runs them: see tests/support/pages.py
    <!-- commands: tested by test_file.py -->    another test does
    <!-- commands: example: REASON -->           nobody does, and why

stands at the head of a page for all its blocks, or directly above a block for that one.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
# A path, and for a Python file maybe a name in it: `webtask_scheduler/scheduler/queue/leases.py` `renew_leases`.
CODE = re.compile(r"`((?:webtask_scheduler|scripts|config|compose|benchmarks|docs)/[\w./-]+)`(?: `([\w.]+)`)?")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Languages of blocks that a reader may type or copy. Others show what is answered: json, http, yaml, plain text.
COMMANDS = {"console", "sh", "bash", "python", "js", "go", "php", "ruby", "java", "sql", "crontab"}
OPENING = re.compile(r"^( *)```(\S*)(?: +title=\"([^\"]+)\")?(.*)$")
MARK = re.compile(r"^ *<!-- commands: (run|example: \S.*|tested by (test_\w+\.py)) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that its title names, its text, and the mark that holds for it."""

    language: str
    title: str
    text: str
    line: int
    mark: str


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page in their order."""
    lines = text.splitlines()
    default = ""
    for line in lines:
        if found := MARK.match(line):
            default = found[1]
        elif line.strip():
            break
    number = 0
    while number < len(lines):
        opened = OPENING.match(lines[number])
        if not opened:
            number += 1
            continue
        above = MARK.match(lines[number - 1]) if number else None
        end = number + 1
        while end < len(lines) and lines[end].strip() != "```":
            end += 1
        inside = (line.removeprefix(opened[1]) for line in lines[number + 1 : end])
        mark = above[1] if above else default
        yield Block(opened[2], opened[3] or "", "\n".join(inside) + "\n", number + 1, mark)
        number = end + 1


def unmarked(text: str) -> Iterator[str]:
    """Yield what is wrong with the marks of a page's commands."""
    for block in blocks(text):
        if not block.mark and (block.language in COMMANDS or block.title):
            yield (
                f"line {block.line}: this {block.language or block.title} is neither run nor marked as an example:"
                " write <!-- commands: run --> or <!-- commands: example: REASON --> above it"
            )
    for line in text.splitlines():
        found = MARK.match(line)
        if "<!-- commands" in line and not found and not line.startswith("    "):
            yield f"this mark is not understood: {line.strip()}"
        elif found and found[2] and not any(ROOT.glob(f"webtask_scheduler/**/{found[2]}")):
            yield f"there is no test {found[2]}"


def anchors(text: str) -> set[str]:
    """Return the anchors that a page's headings make, as GitHub writes them."""
    headings = (re.sub(r"[`*]", "", heading).lower() for heading in HEADING.findall(FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def problems(page: Path) -> Iterator[str]:
    text = page.read_text()
    prose = FENCE.sub("", text)
    for target in LINK.findall(prose):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists():
            yield f"the link to {target} leads nowhere"
        elif anchor and found.suffix == ".md" and anchor not in anchors(found.read_text()):
            yield f"{found.name} has no heading for #{anchor}"
    if page.name == "CHANGELOG.md":
        # The changelog names files of the past.
        return
    yield from unmarked(text)
    for path, name in CODE.findall(prose):
        found = ROOT / path
        if not found.exists():
            yield f"`{path}` is not there"
        elif name and not re.search(rf"\b(def|class) {name}\b|^{name}\b", found.read_text(), re.MULTILINE):
            yield f"`{path}` has no `{name}`"


def main() -> int:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [f"{page.relative_to(ROOT)}: {problem}" for page in pages for problem in problems(page)]
    print("\n".join(found) or f"{len(pages)} pages are in order.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
