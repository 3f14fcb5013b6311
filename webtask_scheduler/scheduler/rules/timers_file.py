"""Reads and writes timers in a YAML file. Pure: what a timer's fields mean is the API's to say.

It takes what JSON can say: texts, numbers, true, false, null, lists and objects with text for names, by the core schema
of YAML 1.2, in which `no` and `12:30` are texts. Anchors, aliases and `<<` are taken within bounds: a short file of
them can stand for a very large one.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from webtask_scheduler.wording import Sentence
from webtask_scheduler.wording import sentence as _

# Of a file; what its aliases stand for counts each time.
CHARACTERS_MOST, NODES_MOST, DEPTH_MOST = 16 * 1024 * 1024, 200_000, 100
TIMERS = "timers"
# Names at the top that hold what is used elsewhere, as in a compose file.
OWN = "x-"
# What is true of a timer only as it is shown: a file that is kept, or compared with the one before, has no use for it.
PASSING = frozenset({"time_left_in_seconds", "reason", "attempts"})
_MERGE = "<<"
_BEGINS = re.compile(r"---(\s|$)|-\s|\[|%YAML\s|[\w-]+\s*:(\s|$)")
_LONG_LINE = 10_000

_TAG = "tag:yaml.org,2002:"
_STR, _SEQ, _MAP = _TAG + "str", _TAG + "seq", _TAG + "map"
_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
)
# More than Python reads; no field takes one so long.
_DIGITS_MOST = 4000


class FileError(ValueError):
    """A file that cannot be read as a whole; the text says where and why."""


class Item(NamedTuple):
    """A timer of a file: in which line it begins, and its fields, or what is wrong with it."""

    line: int
    value: Any
    error: Sentence | str = ""


# C where it is there, as in every wheel: Python alone takes a hundred times as long.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # one of two classes
    yaml_implicit_resolvers: dict[str | None, Any] = {}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # as above
    # As readers of YAML 1.1 and of 1.2 have it: a text that either takes for something else is quoted.
    yaml_implicit_resolvers = {first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


for _kind, _pattern, _first in _CORE:
    _regexp = re.compile(f"(?:{_pattern})\\Z")
    _begins = ["" if one == "\0" else one for one in _first]
    _Loader.add_implicit_resolver(_TAG + _kind, _regexp, _begins)
    _Dumper.add_implicit_resolver(_TAG + _kind, _regexp, _begins)


# A number of YAML 1.2 that is none here.
_Dumper.add_implicit_resolver(_TAG + "int", re.compile(r"0[ox][0-9a-fA-F]+\Z"), ["0"])


def _text_node(dumper: Any, text: str) -> Any:
    """Return a text of several lines as such a block, where nothing of it needs an escape."""
    style = None if text.isprintable() else '"'
    if "\n" in text and text[0].strip() and not text.endswith("\n\n") and all(map(str.isprintable, text.split("\n"))):
        style = "|"
    return dumper.represent_scalar(_STR, text, style=style)


_Dumper.add_representer(str, _text_node)


def is_file(lines: Iterable[str]) -> bool:
    """Return whether lines are such a file, rather than a crontab: by the first that says something."""
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    return _BEGINS.match(first) is not None


def read(text: str) -> list[Item]:
    """Return the timers of a file, which is a list of them, or an object that has it as `timers`. Raises FileError."""
    try:
        root = _root(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        said = _("Line %(line)s is no YAML: %(error)s.", line=line, error=error.problem or "")
        raise FileError(said) from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise FileError(_("This is no YAML: it has a character that may not be in a text.")) from error
    reader = _Reader()
    return [reader.item(node) for node in _items(root)]


def write(timers: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Yield a file of timers, piece by piece; `read` returns the same, without what is PASSING."""
    begun = False
    for shown_timer in timers:
        timer = {name: value for name, value in shown_timer.items() if name not in PASSING}
        shown = yaml.dump(
            [timer], Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=_LONG_LINE
        )
        yield shown if begun else f"{TIMERS}:\n{shown}"
        begun = True
    if not begun:
        yield f"{TIMERS}: []\n"


def _root(text: str) -> Any:
    """Return the file's only document as nodes, within bounds. Raises FileError, YAMLError, UnicodeError."""
    if len(text) > CHARACTERS_MOST:
        raise FileError(_too_large())
    # The composer goes into what is nested by calling itself: how deep that is, the events say before.
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MOST:
                raise FileError(_too_deep(event.start_mark.line + 1 if event.start_mark else 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        # A collection has two, and so has what is around all.
        if count > 2 * NODES_MOST:
            raise FileError(_too_large())
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _items(root: Any) -> list[Any]:
    """Return the nodes of the timers. Raises FileError."""
    if root is None or root.tag == _TAG + "null":
        return []
    found = root
    if isinstance(root, yaml.MappingNode):
        found = None
        for key, value in root.value:
            if key.value == TIMERS:
                found = value
            elif not str(key.value).startswith(OWN):
                raise FileError(
                    _(
                        "Line %(line)s: `timers` is read, and names that begin with %(own)s are passed over; another is"
                        " not known.",
                        line=key.start_mark.line + 1,
                        own=OWN,
                    )
                )
        if found is not None and found.tag == _TAG + "null":
            return []
    if not isinstance(found, yaml.SequenceNode):
        raise FileError(_("A list of timers is required, by itself or as `timers`."))
    return list(found.value)


def _too_large() -> Sentence:
    return _(
        "A file of up to %(characters)s MiB and %(nodes)s values is read, where what an alias stands for counts each"
        " time. Split it, or use JSON Lines.",
        characters=CHARACTERS_MOST // 1024 // 1024,
        nodes=f"{NODES_MOST:,}",
    )


def _too_deep(line: int) -> Sentence:
    return _("Line %(line)s is nested too deeply: %(most)s levels are read.", line=line, most=DEPTH_MOST)


class _ItemError(ValueError):
    """What is wrong with one timer, and in which line."""

    def __init__(self, line: int, said: Sentence) -> None:
        self.line = line
        super().__init__(said)


class _Reader:
    """Makes values of nodes, and counts them over the whole file."""

    def __init__(self) -> None:
        self._nodes, self._characters = NODES_MOST, CHARACTERS_MOST

    def item(self, node: Any) -> Item:
        line = node.start_mark.line + 1
        try:
            return Item(line, self._value(node, 0))
        except _ItemError as error:
            said = error.args[0]
            return Item(
                line, None, said if error.line == line else _("line %(line)s: %(why)s", line=error.line, why=said)
            )

    def _value(self, node: Any, depth: int) -> Any:
        self._count(node, depth)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self._value(one, depth + 1) for one in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._object(node, depth)
        raise _wrong(node, _("the tag %(tag)s is not read", tag=node.tag))

    def _count(self, node: Any, depth: int) -> None:
        self._nodes -= 1
        self._characters -= len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if depth > DEPTH_MOST:
            raise FileError(_too_deep(node.start_mark.line + 1))
        if self._nodes < 0 or self._characters < 0:
            raise FileError(_too_large())

    def _object(self, node: Any, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] | None = None
        own: dict[str, Any] = {}
        for key, value in node.value:
            self._count(key, depth)
            if not isinstance(key, yaml.ScalarNode) or key.tag != _STR:
                raise _wrong(key, _("a name is a text: put it in quotes"))
            if key.value == _MERGE and not key.style:
                if merged is not None:
                    raise _wrong(key, _("%(name)s is given twice", name=_MERGE))
                merged = self._merged(value, depth + 1)
            elif key.value in own:
                raise _wrong(key, _("%(name)s is given twice", name=key.value))
            else:
                own[key.value] = self._value(value, depth + 1)
        return (merged or {}) | own

    def _merged(self, node: Any, depth: int) -> dict[str, Any]:
        found = self._value(node, depth)
        merged: dict[str, Any] = {}
        for one in reversed(found if isinstance(found, list) else [found]):
            if not isinstance(one, dict):
                raise _wrong(node, _("<< takes an object, or a list of them"))
            merged |= one
        return merged


def _scalar(node: Any) -> Any:
    text = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool" if text.lower() in ("true", "false"):
            return text.lower() == "true"
        case "int" | "float" as kind if len(text) <= _DIGITS_MOST:
            try:
                number = int(text) if kind == "int" else float(text)
                # Larger than any that a field takes, and no number of JSON.
                if not math.isinf(number):
                    return number
            except (ValueError, OverflowError):
                pass
    raise _wrong(node, _("%(text)s is not read as %(tag)s", text=text[:40], tag=node.tag.removeprefix(_TAG)))


def _wrong(node: Any, said: Sentence) -> _ItemError:
    return _ItemError(node.start_mark.line + 1, said)
