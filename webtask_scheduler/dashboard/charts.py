"""Numbers into the geometry of drawings, which templates write as SVG. Nothing here knows a table or a clock."""

import itertools
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

# The width of a time line, in its own units.
WIDTH = 1000.0
# What is shorter is drawn as this, to be seen at all.
LEAST = 4.0


class Bar(NamedTuple):
    x: float
    width: float
    # "wait", "good", "bad" or "open".
    kind: str
    label: str


class Call(NamedTuple):
    """One attempt: its start, its end, whether it succeeded, and what is said of it."""

    started_at: datetime
    ended_at: datetime | None
    succeeded: bool
    label: str


def timeline(due_at: datetime, calls: Sequence[Call]) -> list[Bar]:
    """Return the attempts of a delivery, and the waits before them, as bars on one axis from the due time."""
    if not calls:
        return []
    end = max(call.ended_at or call.started_at for call in calls)
    span = max((end - due_at) / timedelta(seconds=1), 0.001)

    def place(at: datetime) -> float:
        return max(0.0, min(1.0, (at - due_at) / timedelta(seconds=1) / span)) * (WIDTH - LEAST)

    bars: list[Bar] = []
    before = due_at
    for call in calls:
        start = place(call.started_at)
        if start - place(before) >= 1:
            bars.append(Bar(round(place(before), 1), round(start - place(before), 1), "wait", ""))
        finish = place(call.ended_at) if call.ended_at else start
        kind = "good" if call.succeeded else "bad"
        bars.append(Bar(round(start, 1), round(max(LEAST, finish - start), 1), kind, call.label))
        before = call.ended_at or call.started_at
    return bars


def tries(offsets: Sequence[float]) -> list[Bar]:
    """Return attempts that may be made, at seconds from the first one, and the waits between them."""
    span = max(offsets[-1], 0.001)
    places = [round(offset / span * (WIDTH - LEAST), 1) for offset in offsets]
    waits = [Bar(begin, round(end - begin, 1), "wait", "") for begin, end in itertools.pairwise(places)]
    return [*waits, *(Bar(place, LEAST, "open", "") for place in places)]


class Span(NamedTuple):
    """A time with a beginning and an end in seconds: what it was, its kind as in Bar, and more to say of it."""

    label: str
    begin: float
    end: float
    kind: str
    note: str = ""
    link: str = ""


class Fall(NamedTuple):
    """One line of a waterfall: a span, and where its bar lies on the axis that all share."""

    span: Span
    x: float
    width: float

    @property
    def took_ms(self) -> float:
        return 1000 * max(0.0, self.span.end - self.span.begin)


def waterfall(spans: Sequence[Span]) -> list[Fall]:
    """Return spans as lines on one axis, from the earliest beginning to the latest end."""
    if not spans:
        return []
    first = min(span.begin for span in spans)
    length = max(0.0001, max(span.end for span in spans) - first)
    falls = []
    for span in spans:
        x = (span.begin - first) / length * (WIDTH - LEAST)
        width = max(0.0, span.end - span.begin) / length * (WIDTH - LEAST)
        falls.append(Fall(span, round(x, 1), round(max(LEAST, width), 1)))
    return falls


class Part(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    state: str


class Stack(NamedTuple):
    """One bar of a chart: its parts from the bottom up, and what is said of it."""

    x: float
    width: float
    label: str
    parts: list[Part]
    # Where it leads; empty for nowhere.
    link: str = ""


CHART_HEIGHT = 100.0


def stacks(bars: Sequence[tuple[str, Sequence[tuple[str, int]]]], *, most: int = 0) -> list[Stack]:
    """Return bars of counts by state side by side. A bar is a label and counts.

    One of `most` is as high as the chart, or the highest without it.
    """
    most = most or max((sum(count for _, count in counts) for _, counts in bars), default=0) or 1
    step = WIDTH / max(1, len(bars))
    found = []
    for number, (label, counts) in enumerate(bars):
        x, width, y = round(number * step, 2), round(step * 0.8, 2), CHART_HEIGHT
        parts = []
        for state, count in counts:
            if count:
                # One of many is seen too.
                height = max(1.0, CHART_HEIGHT * count / most)
                y = max(0.0, y - height)
                parts.append(Part(x, round(y, 2), width, round(height, 2), state))
        found.append(Stack(x, width, label, parts))
    return found


def columns(counts: Sequence[int]) -> str:
    """Return counts side by side as one path, each as wide as 1; the highest is as high as the chart."""
    most = max(counts, default=0) or 1
    path = ""
    for number, count in enumerate(counts):
        if count:
            # One of many is seen too.
            height = max(1, round(CHART_HEIGHT * count / most))
            path += f"M{number} {CHART_HEIGHT - height:g}v{height}h.8v-{height}z"
    return path


def outlines(bars: Sequence[Stack]) -> dict[str, str]:
    """Return the parts of all bars by their states, as one path for each: a path for each part is half of a page."""
    paths: dict[str, str] = {}
    for part in itertools.chain.from_iterable(bar.parts for bar in bars):
        shape = f"M{part.x:.1f} {part.y:.1f}v{part.height:.1f}h{part.width:.1f}v-{part.height:.1f}z"
        paths[part.state] = paths.get(part.state, "") + shape
    return paths


class Mark(NamedTuple):
    """A line across a chart at a value, and how it is named."""

    y: float
    label: str


class Levels(NamedTuple):
    """Series over time as areas, the highest first, which the next one covers from below; see `levels`."""

    # The paths of their outlines.
    areas: list[str]
    # One for each step, without parts.
    columns: list[Stack]
    marks: list[Mark]
    bound: Mark


# Below the lowest mark and above the highest value there is so much room, as a factor: a name fits above a line.
LEVELS_ROOM = 3.0


def levels(
    columns: Sequence[tuple[str, Sequence[float]]], *, marks: Sequence[tuple[float, str]], bound: tuple[float, str]
) -> Levels:
    """Return series over time, as steps, on a logarithmic scale.

    A column is a label and a value of each series, none of them less than that of the series before; no values leave a
    gap. `marks` are values that are drawn across the chart with their names, from the lowest up, as far as there are
    values. The `bound` is always drawn. A value may be infinite: it is drawn at the top.
    """
    highest = max([bound[0], *(value for _, found in columns for value in found)])
    highest = min(highest, max(bound[0], marks[-1][0]))
    least, most = marks[0][0] / LEVELS_ROOM, highest * LEVELS_ROOM
    step = WIDTH / max(1, len(columns))

    def place(value: float) -> float:
        share = math.log(min(value, most) / least) / math.log(most / least)
        return round(CHART_HEIGHT * (1 - max(0.0, share)), 1)

    def outline(series: int) -> str:
        """Return the outline of a series from the bottom up, with one part for each time without a gap."""
        path, is_open = "", False
        for number, (_, found) in enumerate(columns):
            if found:
                begin = "" if is_open else f"M{number * step:.1f} {CHART_HEIGHT:g}"
                path += f"{begin}V{place(found[series]):g}H{(number + 1) * step:.1f}"
            elif is_open:
                path += f"V{CHART_HEIGHT:g}z"
            is_open = bool(found)
        return path + (f"V{CHART_HEIGHT:g}z" if is_open else "")

    count = max((len(found) for _, found in columns), default=0)
    return Levels(
        [outline(series) for series in reversed(range(count))],
        stacks([(label, ()) for label, _ in columns]),
        [Mark(place(value), label) for value, label in marks if value <= highest and value != bound[0]],
        Mark(place(bound[0]), bound[1]),
    )


class Square(NamedTuple):
    x: float
    y: float
    height: float
    state: str
    label: str


STREAK_HEIGHT = 32.0
STREAK_STEP = 10.0


def streak(deliveries: Sequence[tuple[str, float | None, str]]) -> list[Square]:
    """Return deliveries, the oldest first, as columns: state, lateness in milliseconds, label.

    The height is the logarithm of the lateness: 1 ms is a quarter, an hour is full.
    """
    squares = []
    for number, (state, late, label) in enumerate(deliveries):
        share = 0.25 + 0.75 * math.log10(max(1.0, late or 1.0)) / math.log10(3_600_000)
        height = round(STREAK_HEIGHT * min(1.0, share), 1)
        squares.append(Square(number * STREAK_STEP, round(STREAK_HEIGHT - height, 1), height, state, label))
    return squares
