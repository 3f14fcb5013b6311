"""Build the documentation as a site, into `.cache/site`: `./scripts/site [build | serve]`.

MkDocs calls the functions `on_…` (mkdocs.yml names this file). They put in what is made anew each time: the reference
of the API, from the document that the service itself answers at `/api/schema`, and the changelog. `build` then checks
what the site promises: that a reader's browser asks nobody else for anything.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.reference import reference

ROOT = Path(__file__).resolve().parents[1]
# Beside everybody's environment: who runs the service or its tests needs none of it.
PACKAGES = ROOT / ".cache" / "docs"
LOCK = ROOT / "requirements" / "docs.txt"
SITE = ROOT / ".cache" / "site"
FAVICON = ROOT / "webtask_scheduler" / "dashboard" / "static" / "dashboard" / "favicon.svg"

# Replaced by the reference; on a forge the page says where else to find it.
PLACE = "<!-- the reference -->"
# Marks for `scripts.docs` and its tests, which are nothing for readers.
MARK = re.compile(r"^[ ]*<!-- commands: .*?-->\n", re.MULTILINE)
ELSEWHERE = "https://unpkg.com/"
# What a browser loads by itself: scripts, styles, pictures, frames, fonts. Links that a reader follows are none of it.
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|<link\b(?![^>]*\brel=[\"']?(?:canonical|next|prev|alternate))[^>]*\bhref=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')\s]+"
)


def on_files(files: Any, config: Any) -> Any:
    """Add the changelog, which stands at the top of the repository where people look for it, and the product's icon."""
    # Late: MkDocs is not in everybody's environment.
    from mkdocs.structure.files import File

    files.append(File.generated(config, "favicon.svg", abs_src_path=str(FAVICON)))
    text = (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:  # noqa: ARG001 - MkDocs' names
    """Return a page as readers get it."""
    if PLACE in markdown:
        markdown = markdown.replace(PLACE, reference(schema()))
    return MARK.sub("", markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """Take the theme's programs their ways to other servers: old browsers and drawings, neither of which is here."""
    for path in Path(config["site_dir"]).rglob("*.js"):
        text = path.read_text()
        if ELSEWHERE in text:
            path.write_text(text.replace(ELSEWHERE, ""))


def schema() -> dict[str, Any]:
    """Return the OpenAPI document of this code. No database is asked."""
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "config.settings.local",
        "DATABASE_URL": "postgres://nobody@127.0.0.1/none",
        "REDIS_URL": "redis://127.0.0.1/0",
    }
    # Django's packages, not those of MkDocs.
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "manage.py", "spectacular", "--format", "openapi-json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The OpenAPI document could not be made:\n{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def install() -> None:
    """Install MkDocs and its theme as locked, if the lock has changed since the last time."""
    stamp = PACKAGES / "lock.txt"
    if stamp.exists() and stamp.read_text() == LOCK.read_text():
        return
    print("Installing what the site is built with; this happens once", flush=True)
    words = ["-m", "uv", "pip", "install", "--quiet", "--reinstall", "--require-hashes"]
    subprocess.run([sys.executable, *words, "--target", PACKAGES, "--requirement", LOCK], cwd=ROOT, check=True)
    stamp.write_text(LOCK.read_text())


def strangers(folder: Path) -> Iterator[str]:
    """Yield what pages and styles of a built site would load from elsewhere."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text()
            for found in LOADED.findall(text):
                yield f"{path.relative_to(folder)} loads {found}"


def main(words: list[str]) -> int:
    task, *more = words or ["build"]
    if task not in ("build", "serve"):
        print("./scripts/site [build | serve]", file=sys.stderr)
        return 2
    install()
    environment = os.environ | {
        "PYTHONPATH": str(PACKAGES),
        # Advertisement of the theme's makers for their next program.
        "DISABLE_MKDOCS_2_WARNING": "true",
        "NO_MKDOCS_2_WARNING": "true",
    }
    arguments = ["--strict", "--clean"] if task == "build" else ["--dirty"]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", task, *arguments, *more], cwd=ROOT, env=environment, check=False
    )
    if done.returncode or task == "serve":
        return done.returncode
    found = list(strangers(SITE))
    print("\n".join(found) or f"The site is in {SITE.relative_to(ROOT)}: open index.html there.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
