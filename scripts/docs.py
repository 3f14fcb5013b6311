"""Check the pages for people: links lead somewhere, and what they name of the repository is there.

    python -m scripts.docs

Looked at are README.md, CHANGELOG.md and docs/: relative links with their anchors, paths in backticks that begin with
a folder of the repository, with the name in that file where one follows, as the walks of docs/contributing.md have it.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
# A path, and for a Python file maybe a name in it: `webtask_scheduler/scheduler/queue/leases.py` `renew_leases`.
CODE = re.compile(r"`((?:webtask_scheduler|scripts|config|compose|benchmarks|docs)/[\w./-]+)`(?: `([\w.]+)`)?")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


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
