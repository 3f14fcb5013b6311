r"""What commands print: values of others cannot move the cursor, change colours, or turn the text around.

A timer's name, a URL, a label or the text of an answer may hold control characters, which a terminal obeys. They are
shown as JSON escapes, such as \u001b, so that what is printed as JSON stays JSON.
"""

import re
import sys
from typing import Any, TextIO

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
