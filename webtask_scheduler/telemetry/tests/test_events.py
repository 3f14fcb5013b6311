"""What is promised of events: the page lists each one with its level and fields, and they look as they always did."""

import ast
import json
import logging
import re
import sys
import uuid

import pytest
from django.contrib.admin.exceptions import DisallowedModelAdminToField

from webtask_scheduler.scheduler.tests.support.service import CHECKOUT
from webtask_scheduler.telemetry import origin
from webtask_scheduler.telemetry.events import event
from webtask_scheduler.telemetry.logs import JSONFormatter, LineFormatter

ROW = re.compile(r"^\| `(\w+)` \| ([A-Z, ]+) \| ?([\w, ]*?) ?\|", re.MULTILINE)
# What the formatters add; no field may have such a name.
TAKEN = {"time", "level", "logger", "event", "message", "request_id", "trace_id", "span_id", "exception"}
# Not written out where a traceback shows the source.
SECRET = "s3" + "cret"
# Made in a filter of the settings, from a line of Celery.
BY_FILTER = {"task_failed": ({"ERROR"}, ["task", "error"])}


def documented():
    page = (CHECKOUT / "docs/logs.md").read_text()
    return {
        name: (set(levels.split(", ")), [field for field in fields.split(", ") if field])
        for name, levels, fields in ROW.findall(page)
    }


def levels_of(call):
    given = [word.value for word in call.keywords if word.arg == "level"]
    return {node.attr for level in given for node in ast.walk(level) if isinstance(node, ast.Attribute)} & {
        "DEBUG",
        "INFO",
        "WARNING",
        "ERROR",
        "CRITICAL",
    } or {"INFO"}


def logged():
    """Return the events of the code: their levels, and their fields in order."""
    found = {}
    for folder in ("webtask_scheduler", "config"):
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            if "tests" in path.relative_to(CHECKOUT).parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "event":
                    (name,) = node.args
                    fields = [word.arg for word in node.keywords if word.arg not in ("level", "exc_info")]
                    assert isinstance(name, ast.Constant), f"{path}: the name of an event is written out"
                    assert None not in fields, f"{path}: the fields of an event are written out"
                    known = found.setdefault(name.value, (levels_of(node), fields))
                    assert known == (levels_of(node), fields), f"{name.value} has different fields in {path}"
    return found | BY_FILTER


def test_page_lists_each_event_with_its_level_and_fields():
    assert documented() == logged()
    assert len(documented()) > 40


def test_no_field_has_the_name_of_something_else():
    assert not TAKEN & {field for _, fields in documented().values() for field in fields}


def test_all_of_our_lines_are_events():
    """No module of ours logs by another door."""
    for path in sorted((CHECKOUT / "webtask_scheduler").rglob("*.py")):
        if not {"tests", "telemetry"} & set(path.relative_to(CHECKOUT).parts):
            assert "getLogger" not in path.read_text(), path


@pytest.fixture
def written():
    """Return a function that logs one event and returns it as a formatter writes it."""

    def write(formatter, name="it_happened", **fields):
        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(formatter.format(record))
        logging.getLogger().addHandler(handler)
        try:
            event(name, level=logging.WARNING, **fields)
        finally:
            logging.getLogger().removeHandler(handler)
        (line,) = lines
        return line

    return write


def test_line_is_time_level_logger_event_and_fields(written):
    timer = uuid.uuid4()
    line = written(LineFormatter(), timer=timer, host="a.example:81", status=None, done=True, late_ms=1.5, reason="a b")
    when, level, rest = line.split(" ", 2)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", when)
    assert level == "WARNING"
    assert rest == (
        f"{__name__}: it_happened timer={timer} host=a.example:81 status=- done=True late_ms=1.5 reason='a b'"
    )


def test_line_break_in_a_value_makes_no_line(written):
    assert "\n" not in written(LineFormatter(), reason="a\n2026-01-01T00:00:00.000 ERROR x: forged")


def test_what_others_log_and_raise_makes_no_line_and_no_colour(caplog):
    sent = "x\n2026-01-01T00:00:00.000 ERROR x: forged\x1b[31m\x00\u202e"
    error = DisallowedModelAdminToField(f"The field {sent} cannot be referenced.")
    logging.getLogger("a.library").error("Refused: %s", sent, exc_info=error)
    text = LineFormatter().format(caplog.records[-1])
    assert text.count("forged") == 2
    assert [line for line in text.split("\n") if line.startswith("2026-01-01")] == []
    assert text.replace("\n", "").isprintable()


def test_json_is_one_object_with_values_of_their_types(written):
    timer = uuid.uuid4()
    body = json.loads(written(JSONFormatter(), timer=timer, status=None, done=True, late_ms=1.5, reason="a\nb"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body.pop("time"))
    assert body == {
        "level": "WARNING",
        "logger": __name__,
        "event": "it_happened",
        "timer": str(timer),
        "status": None,
        "done": True,
        "late_ms": 1.5,
        "reason": "a\nb",
    }


def test_ids_of_the_request_are_in_each_line(written):
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with origin.of(origin.Origin("abc", traceparent)):
        assert written(LineFormatter()).endswith("it_happened request_id=abc")
        body = json.loads(written(JSONFormatter(service="timers", env="prod", version="1.2")))
    assert {name: body[name] for name in body if name not in ("time", "level", "logger", "event")} == {
        "request_id": "abc",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
        "dd.service": "timers",
        "dd.env": "prod",
        "dd.version": "1.2",
        "dd.trace_id": str(0x8448EB211C80319C),
        "dd.span_id": str(0xB7AD6B7169203331),
    }
    assert "request_id" not in written(LineFormatter())


def test_datadogs_attributes_are_left_out_where_unset(written):
    with origin.of(origin.Origin("abc", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")):
        assert not [name for name in json.loads(written(JSONFormatter())) if name.startswith("dd.")]


@pytest.mark.parametrize("formatter", [LineFormatter(), JSONFormatter()])
def test_traceback_has_its_frames_and_no_quoted_value(written, formatter):
    try:
        try:
            int(SECRET)
        except ValueError as error:
            raise RuntimeError(f"https://u:{SECRET}@a.example/p?q={SECRET} failed") from error
    except RuntimeError:
        line = written(formatter, exc_info=True)
    assert SECRET not in line
    assert "ValueError: invalid literal for int() with base 10: '…'" in line
    assert "RuntimeError: https://a.example/p?… failed" in line
    assert "test_events.py" in line
    assert line.index("ValueError") < line.index("RuntimeError: ")


def test_event_below_the_level_costs_no_record(caplog):
    caplog.set_level(logging.ERROR, logger=__name__)
    event("it_happened")
    assert not caplog.records


def test_logger_is_the_module_that_calls(written):
    assert f" {sys.modules[__name__].__name__}: " in written(LineFormatter())
