"""Timers in a YAML file: what is written is read again as the same, and a small file does not become a large one."""

import json
import time

import pytest
import yaml

from webtask_scheduler.scheduler.rules import timers_file
from webtask_scheduler.scheduler.rules.timers_file import FileError, is_file, read, write

TEXTS = [
    *("", " ", "no", "Yes", "on", "12:30", "1e5", "1.", ".5", "0o17", "0x1f", "010", "1_000", ".inf", ".nan", "~"),
    *("null", "true", "2026-01-01", "2026-01-01T00:00:00Z", "<<", "=", "---", "...", "- a", "# x", "a: b", "a #b"),
    *("'", '"', "%x", "!a", "&a", "*a", "?", "|", ">", "@", "`", "{", "[", "]", ",", "a\\nb", "\\"),
    *("a\nb", "a\n b\n", " a\nb", "a\n\nb", "a\n", "a\n\n", "\n", "\n\na", "a \nb", "a\tb", "\ta", "x\r\ny", "\r"),
    *(
        "\u2028",
        "\x85",
        "\x07",
        "\x7f",
        "\ufeff",
        "é",
        "\N{PILE OF POO}",
        "\u202e",
        "\u3000",
        "x " * 9000,
        "x" * 20_000,
    ),
]
VALUES = [*TEXTS, 0, -1, 12345678901234567890123, 1.5, 1e300, 1e-7, 1e17, True, False, None, [], {}, [[1], {"a": []}]]


def values(text):
    items = read(text)
    assert not [item.error for item in items if item.error]
    return [item.value for item in items]


def errors(text):
    return [item.error for item in read(text)]


def test_what_is_written_is_read_as_the_same():
    timers = [{"a": value, "b": {"c": [value]}} for value in VALUES] + [dict.fromkeys(TEXTS, 1)]
    text = "".join(write(timers))
    assert values(text) == timers
    assert values("".join(write([]))) == []
    # Readers of YAML 1.1, as most are, find the same.
    assert yaml.safe_load(text)["timers"] == timers


def test_it_is_written_for_people():
    timer = {"web_url": "http://a.example/", "cron": "0 9 * * *", "body": "one\ntwo\n", "labels": {"team": "a"}}
    assert "".join(write([timer, timer])).partition("- web_url")[2].partition("- web_url")[0].splitlines() == [
        ": http://a.example/",
        "  cron: 0 9 * * *",
        "  body: |",
        "    one",
        "    two",
        "  labels:",
        "    team: a",
    ]


def test_values_are_those_of_json():
    text = "- {a: no, b: 12:30, c: 2026-01-01, d: 010, e: 0x10, f: 1e3, g: ~, h: , i: TRUE, j: -1, k: '1', l: 1_0}"
    assert values(text) == [
        {"a": "no", "b": "12:30", "c": "2026-01-01", "d": 10, "e": "0x10", "f": 1000.0, "g": None, "h": None}
        | {"i": True, "j": -1, "k": "1", "l": "1_0"}
    ]


def test_what_is_named_once_is_used_again():
    text = """
x-defaults:
  day: &day {timezone: Europe/Berlin, name: d, retry: &retry {max_attempts: 3}}
  slow: &slow {timeout_seconds: 60, name: s}
timers:
- <<: *day
  name: own
- <<: [*slow, *day]
  retry: *retry
- "<<": text
"""
    day, slow = {"timezone": "Europe/Berlin", "name": "d", "retry": {"max_attempts": 3}}, {"timeout_seconds": 60}
    assert values(text) == [day | {"name": "own"}, day | slow | {"name": "s"}, {"<<": "text"}]


def test_what_is_wrong_with_one_timer_is_said_of_it_alone():
    text = """timers:
- {a: 1, a: 2}
- 1: x
- {[a]: x}
- !!binary aGk=
- !!python/object/apply:os.system [id]
- !!int x
- a:
    - b: 1
      <<: 5
- {<<: {a: 1}, <<: {a: 2}}
- {a: 1e1000}
- fine
"""
    assert [(item.line, str(item.error), item.value) for item in read(text)] == [
        (2, "a is given twice", None),
        (3, "a name is a text: put it in quotes", None),
        (4, "a name is a text: put it in quotes", None),
        (5, "aGk= is not read as binary", None),
        (6, "the tag tag:yaml.org,2002:python/object/apply:os.system is not read", None),
        (7, "x is not read as int", None),
        (8, "line 10: << takes an object, or a list of them", None),
        (11, "<< is given twice", None),
        (12, "1e1000 is not read as float", None),
        (13, "", "fine"),
    ]


def test_file_that_cannot_be_read_is_refused_as_a_whole():
    for text, said in {
        "timers: {}": "A list of timers is required",
        "timers: x": "A list of timers is required",
        "x": "A list of timers is required",
        "timer: []": "Line 1: `timers` is read",
        "- a\n---\n- b": "Line 2 is no YAML",
        "- a\n- [": "Line 3 is no YAML",
        "- *x": "undefined alias",
        "- \0": "may not be in a text",
        "- \ud800": "may not be in a text",
        "- &a [*a]": "nested too deeply",
        "[" * 100_000: "nested too deeply",
        "- " * 200: "nested too deeply",
    }.items():
        with pytest.raises(FileError, match=said):
            read(text)
    for nothing in ("", "# x", "timers:", "timers: []", "---"):
        assert values(nothing) == []


def test_small_file_does_not_become_a_large_one():
    nine = "[" + ", ".join(["*a{0}"] * 9) + "]"
    lists = "".join(f"x-a{n}: &a{n} {nine.format(n - 1)}\n" for n in range(1, 30))
    merges = "".join(f"x-a{n}: &a{n} {{<<: {nine.format(n - 1)}}}\n" for n in range(1, 30))
    chain = "".join(f"x-a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1000))
    text = f"x-a0: &a0 {'x' * 100_000}\ntimers: [" + ", ".join(["*a0"] * 1000) + "]"
    many = "[" + "[]," * (timers_file.NODES_MOST + 1) + "]"
    begun = time.monotonic()
    for bomb, said in (
        ("x-a0: &a0 lol\n" + lists + "timers: [*a29]", "200,000 values"),
        ("x-a0: &a0 {k: v}\n" + merges + "timers: [*a29]", "200,000 values"),
        ("x-a0: &a0 [lol]\n" + chain + "timers: [*a999]", "nested too deeply"),
        (text, "16 MiB"),
        (many, "200,000 values"),
        ("#" * (timers_file.CHARACTERS_MOST + 1), "16 MiB"),
    ):
        with pytest.raises(FileError, match=said):
            read(bomb)
    # They take seconds together, and would take for ever.
    assert time.monotonic() - begun < 30


def test_file_is_told_from_a_crontab():
    yes = ("timers:", "timers: []", "- web_url: x", "---", "[{}]", "# mine\n\n- a", "x-base: &a", "%YAML 1.2")
    no = ("", "* * * * * x", "-*/5 * * * * x", "@daily x", "MAILTO=x", "0 9 * * * timers: x", "timers=x", '{"a": 1}')
    assert [text for text in (*yes, *no) if is_file(text.split("\n"))] == list(yes)
    assert not is_file(["", " # x"])


def test_c_reads_it_as_fast_as_it_has_to():
    timer = {"web_url": "http://a.example/", "cron": "0 9 * * *", "labels": {"a": "b"}, "retry": {"max_attempts": 3}}
    text = "".join(write([timer] * 1000))
    begun = time.process_time()
    assert len(read(text)) == 1000
    assert time.process_time() - begun < 2
    assert json.loads(json.dumps(values(text))) == [timer] * 1000
