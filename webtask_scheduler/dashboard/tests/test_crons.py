"""Cron expressions in words: true, or none."""

from datetime import datetime

from django.utils import translation

from webtask_scheduler.dashboard import crons
from webtask_scheduler.scheduler.rules.recurrence import Recurrence

WORDS = {
    "* * * * *": "every minute, every day",
    "*/15 * * * *": "every 15 minutes, every day",
    "5 * * * MON": "each hour at minute 5, Monday",
    "0 9 * * MON-FRI": "at 09:00, Monday to Friday",
    "0,30 9,17 * * 0,6": "at 09:00, 09:30, 17:00, 17:30, Sunday, Saturday",
    "0 9 13 * FRI": "at 09:00, on day 13 of the month or Friday",
    "0 9 L * *": "at 09:00, on the last day of the month",
    "0 9 1,15 jan-mar *": "at 09:00, on day 1, 15 of the month, January to March",
    "0 9 * * 7": "at 09:00, Sunday",
    # What would take a riddle is not said.
    "*/7 * * * *": "",
    "*/5 8-18 * * *": "",
    "0 9 * * 1#2": "",
    "0 9 * * 5L": "",
    "0 9 */2 * *": "",
    "0 9 15W * *": "",
    "0 9 * * FRI-MON": "",
    "nonsense": "",
    "": "",
}


def test_words_are_those_of_the_expression():
    assert {cron: crons.in_words(cron) for cron in WORDS} == WORDS


def test_either_day_is_called_for():
    # As the words say: the 13th, and each Friday.
    moments = Recurrence(cron="0 9 13 * FRI", timezone="UTC").moments(datetime.fromisoformat("2026-01-08T00:00:00Z"))
    assert [f"{next(moments):%a %d}" for _ in range(3)] == ["Fri 09", "Tue 13", "Fri 16"]


def test_each_preset_is_taken_and_has_words():
    for cron, words in crons.presets():
        assert words, cron
        next(Recurrence(cron=cron, timezone="UTC").moments(datetime.fromisoformat("2026-01-01T00:00:00Z")))


def test_days_are_named_in_the_language_of_the_request():
    with translation.override("de"):
        assert "Montag" in crons.in_words("0 9 * * MON")
