"""Does what a page of the documentation says, as a reader would, and holds what it shows against what happens."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.docs import ROOT, blocks

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
# What is another each time. Of all else, a page shows what is so.
VARYING = {"id", "secret", "worker", "hint", "next", "time_left_in_seconds", "lateness_ms", "duration_ms"}
# Of an attempt's stages.
VARYING |= {"claimed", "published", "received", "resolved", "connected", "first_byte"}
# Stands in a page for what is left out, and for what is another each time.
ANYTHING = "…"
TOKEN = re.compile(f"{UUID.pattern}|{INSTANT.pattern}|{ANYTHING}")
# A command that only looks is repeated until it shows what the page shows.
PATIENCE_SECONDS = 15.0
ASSIGNMENT = re.compile(r"([A-Z]+)=(\S+)")


class Reader:
    """Follows one page after another. Ids of a page are learned from the answers, and stand for the real ones after."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str], addresses: Mapping[str, str]) -> None:
        """Work in a folder. `addresses` maps what pages name, as 127.0.0.1:8000, to what is there in its place."""
        self.folder = folder
        self.addresses = addresses
        self.learned: dict[str, str] = {}
        self.background: list[subprocess.Popen[bytes]] = []
        tools = folder / "bin"
        tools.mkdir()
        manage = tools / "manage.py"
        manage.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(ROOT))}/manage.py "$@"\n')
        manage.chmod(0o755)
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        self.environment = {
            **environment,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "CURL_HOME": str(folder),
            "PYTHONUNBUFFERED": "1",
            # Pages show what commands say, without the log.
            "LOG_LEVEL": "WARNING",
        }

    def follow(self, page: Path) -> Iterator[str]:
        """Yield where what happens is not what the page shows."""
        for block in blocks(page.read_text()):
            if block.mark != "run":
                continue
            if block.title:
                (self.folder / block.title).write_text(self._real(block.text))
                continue
            for command, shown in steps(block.text):
                if problem := self._try(command, shown):
                    yield f"{page.name}, line {block.line}: $ {command}\n{problem}"

    def close(self) -> None:
        for process in self.background:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _try(self, command: str, shown: str) -> str:
        if assignment := ASSIGNMENT.fullmatch(command):
            self.environment[assignment[1]] = self.learned.get(assignment[2], assignment[2])
            return ""
        if command.endswith("&"):
            words = ["bash", "-c", f"exec {self._real(command[:-1])}"]
            self.background.append(
                subprocess.Popen(
                    words,
                    cwd=self.folder,
                    env=self.environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            return ""
        _pause, _, looking = command.rpartition("; ")
        if looks := not re.search(r" -[Xd] |manage\.py|python3", looking) and shown != "":
            command = looking
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            problem = self.compare(shown, self._run(command))
            if not problem or not looks or time.monotonic() > deadline:
                return problem
            time.sleep(0.1)

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", self._real(command)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
        )
        said = done.stdout.replace("\r", "")
        for named, real in self.addresses.items():
            said = said.replace(real, named)
        return said

    def _real(self, text: str) -> str:
        text = text.replace("localhost:", "127.0.0.1:")
        for named, real in self.addresses.items():
            text = text.replace(named, real)
        return UUID.sub(lambda found: self.learned.get(found[0], found[0]), text)

    def compare(self, shown: str, happened: str) -> str:
        """Return how two texts differ beyond what is another each time; empty if they do not."""
        if not shown.strip():
            return "" if "Error" not in happened else happened
        if shown.startswith("HTTP/"):
            head, _, body = shown.partition("\n\n")
            real_head, _, real_body = happened.partition("\n\n")
            # A page leaves headers out, so each line that it has is looked for.
            lines = real_head.splitlines()
            for line in head.splitlines():
                if not any(self._alike(line, other) for other in lines):
                    return f"no line is as {line!r} in:\n{real_head}"
            return self.compare(body, real_body) if body.strip() else ""
        try:
            expected = json.loads(shown)
        except ValueError:
            alike = self._alike(shown, happened)
        else:
            try:
                found = json.loads(happened)
            except ValueError:
                return f"expected JSON, not:\n{happened}"
            return self._compare(expected, found, "")
        return "" if alike else f"expected:\n{shown}\nnot:\n{happened}"

    def _compare(self, expected: Any, found: Any, key: str) -> str:
        if isinstance(expected, dict) and isinstance(found, dict):
            if list(expected) != list(found):
                return f"{key or 'it'} has the members {list(found)}, not {list(expected)}"
            pairs = [(expected[name], found[name], name) for name in expected]
        elif isinstance(expected, list) and isinstance(found, list):
            if len(expected) != len(found):
                return f"{key} has {len(found)} members, not {len(expected)}: {found}"
            pairs = [(one, other, key) for one, other in zip(expected, found, strict=True)]
        else:
            return "" if self._same(expected, found, key) else f"{key} is {found!r}, not {expected!r}"
        return next((problem for pair in pairs if (problem := self._compare(*pair))), "")

    def _same(self, expected: Any, found: Any, key: str) -> bool:
        if (key in VARYING and type(expected) is type(found)) or {type(expected), type(found)} == {int, float}:
            if key == "id":
                self.learned[str(expected)] = str(found)
            return True
        if isinstance(expected, str) and isinstance(found, str):
            return self._alike(expected, found) or bool(INSTANT.fullmatch(expected) and INSTANT.fullmatch(found))
        return bool(expected == found)

    def _alike(self, expected: str, found: str) -> bool:
        """Return whether a text is as shown, and learn the ids in it."""
        if expected.lstrip()[:1] in ("{", "[") and ANYTHING in expected:
            # An answer is one line; a page folds it.
            expected, found = "".join(expected.split()), "".join(found.split())
        pattern, named, end = "", [], 0
        expected = expected.strip()
        for token in TOKEN.finditer(expected):
            pattern += re.escape(expected[end : token.start()])
            end = token.end()
            if UUID.fullmatch(token[0]):
                named.append(token[0])
                pattern += f"({UUID.pattern})"
            else:
                pattern += ".*" if token[0] == ANYTHING else INSTANT.pattern
        matched = re.fullmatch(pattern + re.escape(expected[end:]), found.strip(), re.DOTALL)
        if not matched:
            return False
        real = dict(zip(named, matched.groups(), strict=True))
        if any(self.learned.get(name, there) != there for name, there in real.items()):
            return False
        self.learned |= real
        return True


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block with what it shows. One that has an open quotation goes on in the next line."""
    command, shown = "", ""
    for line in text.splitlines():
        if command and _is_open(command):
            command += f"\n{line}"
        elif line.startswith("$ "):
            if command:
                yield command, shown.strip("\n")
            command, shown = line[2:], ""
        else:
            shown += f"{line}\n"
    if command:
        yield command, shown.strip("\n")


def _is_open(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False
