r"""What commands print: their output, and how far long work has come.

Values of others cannot move the cursor, change colours, or turn the text around.

A timer's name, a URL, a label or the text of an answer may hold control characters, which a terminal obeys. They are
shown as JSON escapes, such as \u001b, so that what is printed as JSON stays JSON.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, Self, TextIO

from django.core.management.base import BaseCommand, OutputWrapper

# C0 and C1 with DEL, the separators of lines and paragraphs, surrogates, and what reorders text.
_OBEYED = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_A_VALUE = re.compile(f"[{_OBEYED}]")
# Lines of a text are ours.
_IN_A_TEXT = re.compile(f"(?!\\n)[{_OBEYED}]")


def one_line(value: object) -> str:
    """Return a value as text without anything that a terminal obeys, line breaks included."""
    return _IN_A_VALUE.sub(_escaped, str(value))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class _Output(OutputWrapper):
    def write(  # type: ignore[override]  # as OutputWrapper has it
        self, msg: str = "", style_func: Any = None, ending: str | None = None
    ) -> None:
        # Before it is styled: colours are ours.
        super().write(_IN_A_TEXT.sub(_escaped, str(msg)), style_func, ending)


class Command(BaseCommand):
    """A command whose output and errors hold nothing that a terminal obeys but their lines and colours."""

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None, **more: Any) -> None:
        super().__init__(stdout, stderr, **more)
        self.stdout = _Output(stdout or sys.stdout)
        self.stderr = _Output(stderr or sys.stderr)
        self.stderr.style_func = self.style.ERROR

    def execute(self, *args: Any, **options: Any) -> str | None:
        # Django wraps what it is given here once more.
        given = {name: _Output(options[name]) for name in ("stdout", "stderr") if options.get(name)}
        return super().execute(*args, **(options | given))


# Work that is done sooner shows no bar, and none that is done within LINE_SECONDS a line.
BAR_AFTER_SECONDS = 0.5
LINE_SECONDS = 5.0


class Progress:
    """Shows on standard error how far long work has come: a bar on a terminal, elsewhere a line every few seconds.

    With `quiet` it shows nothing. `total` may be unknown. `in_a_line` says that the cursor stands in a line of others.
    """

    def __init__(
        self,
        what: str,
        *,
        total: float | None = None,
        quiet: bool = False,
        in_a_line: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._what, self._total, self._quiet, self._in_a_line = one_line(what), total, quiet, in_a_line
        self._stream = stream or sys.stderr
        self._done: float = 0
        self._bar: Any = None
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: float = 1) -> None:
        """Say that so much more is done."""
        self._done += count
        if self._quiet:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif self._stream.isatty():
            if now - self._begun >= BAR_AFTER_SECONDS:
                self._bar = self._drawn()
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            of = f" / {self._total:,.0f} ({100 * self._done / self._total:.0f} %)" if self._total else ""
            print(f"{self._what}: {self._done:,.0f}{of}", file=self._stream, flush=True)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while the block prints."""
        if self._bar is not None:
            self._bar.clear()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.refresh()

    def _has_size(self) -> bool:
        """Return whether the terminal says how large it is; some do not."""
        try:
            return all(os.get_terminal_size(self._stream.fileno()))
        except OSError:
            return False

    def _drawn(self) -> Any:
        # Late: most commands draw none.
        from tqdm import tqdm

        # No thread that looks after bars.
        tqdm.monitor_interval = 0
        if self._in_a_line:
            print(file=self._stream)
        size: dict[str, Any] = {"dynamic_ncols": True} if self._has_size() else {"ncols": 80, "nrows": 24}
        bar = tqdm(
            desc=self._what,
            total=self._total,
            initial=self._done,
            file=self._stream,
            leave=False,
            **size,
            unit="",
            mininterval=0.2,
        )
        # As if it had been there from the beginning: the speed is that of the whole.
        bar.start_t -= time.monotonic() - self._begun
        bar.initial = 0
        bar.refresh()
        return bar
