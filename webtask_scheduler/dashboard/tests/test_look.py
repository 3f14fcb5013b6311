"""The look that can be computed: contrasts, sizes, drawings."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from webtask_scheduler.dashboard import charts
from webtask_scheduler.dashboard.templatetags.dash import _STATES
from webtask_scheduler.scheduler.tests.support.cases import each

STATIC = Path(__file__).resolve().parents[1] / "static" / "dashboard"
STYLE = (STATIC / "dash.css").read_text()
_PAIR = r"light-dark\((#[0-9a-f]{3,6}), (#[0-9a-f]{3,6})\)"
COLOURS = {name: pair for name, *pair in re.findall(rf"--([a-z-]+): {_PAIR}", STYLE)}
# A state that is not named has the colour of all that stands still.
_STILL, *_NAMED = re.findall(rf"\[data-state(?:=([a-z]+))?\] {{ --state: (?:var\(--([a-z]+)\)|{_PAIR}); }}", STYLE)
COLOURS = dict.fromkeys(_STATES, _STILL[2:]) | COLOURS
COLOURS |= {name: COLOURS[same] if same else pair for name, same, *pair in _NAMED}


def luminance(colour):
    digits = colour.lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@each("theme", [0, 1], ids=["light", "dark"])
@each("name", [*_STATES, "text", "quiet", "accent"])
@each("ground", ["ground", "sheet", "hover", "raised"])
def test_text_of_each_colour_can_be_read(name, ground, theme):
    assert contrast(COLOURS[name][theme], COLOURS[ground][theme]) >= 4.5


def test_text_on_a_button_can_be_read():
    for on, accent in zip(COLOURS["on-accent"], COLOURS["accent"], strict=True):
        assert contrast(on, accent) >= 4.5


def test_states_that_need_somebody_differ_in_colour():
    named = [name for name, *_ in _NAMED]
    assert set(_STATES) - set(named) == {"paused", "cancelled", "stopped", "later"}
    assert len({tuple(COLOURS[name]) for name in [*named, "paused"]}) == len(named) + 1


DUE = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def call(start, seconds, *, succeeded=False):
    end = None if seconds is None else DUE + timedelta(seconds=start + seconds)
    return charts.Call(DUE + timedelta(seconds=start), end, succeeded, "")


def test_attempts_and_waits_are_bars_on_one_axis():
    bars = charts.timeline(DUE, [call(0, 10), call(50, 50, succeeded=True)])
    assert [bar.kind for bar in bars] == ["bad", "wait", "good"]
    assert [round(bar.x) for bar in bars] == [0, 100, 498]
    assert round(bars[-1].x + bars[-1].width) == charts.WIDTH - charts.LEAST


def test_short_attempt_is_drawn_and_a_lost_one_too():
    assert charts.timeline(DUE, []) == []
    (bar,) = charts.timeline(DUE, [call(0, 0)])
    assert bar.width == charts.LEAST
    assert charts.timeline(DUE, [call(5, None)])[-1].width == charts.LEAST


def test_later_is_higher():
    heights = [square.height for square in charts.streak([("succeeded", late, "") for late in (None, 1, 100, 10_000)])]
    assert heights == sorted(heights)
    (square,) = charts.streak([("failed", 10.0**12, "")])
    assert square.height == charts.STREAK_HEIGHT


def test_waterfall_has_one_axis():
    falls = charts.waterfall([charts.Span("a", -1, 0, "wait"), charts.Span("b", 0, 3, "good")])
    assert [(round(fall.x), round(fall.width)) for fall in falls] == [(0, 249), (249, 747)]
    assert [fall.took_ms for fall in falls] == [1000, 3000]
    assert charts.waterfall([]) == []
    (instant,) = charts.waterfall([charts.Span("a", 5, 5, "good")])
    assert instant.width == charts.LEAST


def test_bars_of_a_given_height_do_not_grow():
    (bar,) = charts.stacks([("a", [("late", 5)])], most=10)
    assert bar.parts[0].height == 50.0


def test_attempts_of_a_policy_are_drawn_where_they_would_be_made():
    bars = charts.tries([0, 5, 20])
    assert [(bar.kind, round(bar.x), round(bar.width)) for bar in bars] == [
        ("wait", 0, 249),
        ("wait", 249, 747),
        ("open", 0, 4),
        ("open", 249, 4),
        ("open", 996, 4),
    ]
    assert [bar.x for bar in charts.tries([0, 0])] == [0, 0, 0]
