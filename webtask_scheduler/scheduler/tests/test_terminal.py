"""How far long work has come: a bar on a real terminal, lines elsewhere, and nothing if it is to be quiet."""

import io
import json
import os
import pty
import subprocess
import sys
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from webtask_scheduler import terminal
from webtask_scheduler.scheduler.models import BulkOperation, Delivery, State
from webtask_scheduler.scheduler.services.many import step_bulk

WORK = """
import sys, time
from webtask_scheduler import terminal
terminal.BAR_AFTER_SECONDS = terminal.LINE_SECONDS = 0.2
with terminal.Progress("rows\\x1b[2J", total=40, quiet="quiet" in sys.argv, in_a_line="line" in sys.argv) as progress:
    for number in range(20):
        time.sleep(0.04)
        progress.add(2)
        if number == 15:
            with progress.aside():
                print("a result", flush=True)
print("the end", flush=True)
"""


def on_terminal(*words):
    """Return what the work prints where both outputs are one real terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", WORK, *words], stdout=theirs, stderr=theirs)
    os.close(theirs)
    found = b""
    try:
        while piece := os.read(ours, 4096):
            found += piece
    except OSError:
        # The end of a terminal whose other side was closed.
        pass
    os.close(ours)
    assert process.wait(10) == 0
    return found.decode()


def on_pipe(*words):
    done = subprocess.run([sys.executable, "-c", WORK, *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout, done.stderr


def screen(text):
    """Return the lines that are left on a screen: a carriage return begins the line anew."""
    return [line.replace("\r", "\n").strip("\n").split("\n")[-1].strip() for line in text.split("\r\n")]


def test_terminal_shows_a_bar_and_is_left_clean():
    shown = on_terminal()
    assert "%|" in shown
    assert "40 [" in shown
    # A value of others moves no cursor.
    assert "\x1b[2J" not in shown
    left = [line for line in screen(shown) if line]
    assert left == ["a result", "the end"]
    assert "\n" not in on_terminal().partition("a result")[0]
    # Where a line was begun, the bar has one of its own.
    assert "\r\n" in on_terminal("line").partition("%|")[0]


def test_pipe_gets_plain_lines_now_and_then():
    out, err = on_pipe()
    assert out.splitlines() == ["a result", "the end"]
    lines = err.splitlines()
    assert 2 <= len(lines) <= 4
    for line in lines:
        assert line.startswith("rows\\u001b[2J: ")
        assert line.endswith("%)")
        assert "\r" not in line


def test_quiet_is_quiet():
    assert on_pipe("quiet") == ("a result\nthe end\n", "")
    assert "%|" not in on_terminal("quiet")


def test_work_that_is_soon_done_says_nothing():
    stream = io.StringIO()
    with terminal.Progress("rows", total=3, stream=stream) as progress:
        for _ in range(3):
            progress.add()
    assert stream.getvalue() == ""


@pytest.mark.django_db
def test_commands_say_how_far_they_are(tmp_path, capsys, monkeypatch, make_timer):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    path = tmp_path / "lines"
    path.write_text("\n".join(f"{number % 60} * * * * http://a.example/{number}" for number in range(250)))
    call_command("timer", "import", str(path))
    said = capsys.readouterr()
    assert said.err.splitlines() == ["Lines: 200 / 250 (80 %)", "Lines: 250 / 250 (100 %)"]
    assert said.out.endswith("All 250 are there.\n")
    call_command("timer", "export")
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "Timers exported: 250"
    assert len([json.loads(line) for line in said.out.splitlines()]) == 250
    call_command("timer", "export", verbosity=0)
    assert capsys.readouterr().err == ""
    Delivery.objects.update(state=State.CANCELLED, finished_at="2020-01-01T00:00:00Z")
    call_command("prune_timers", "--older-than", "1d")
    said = capsys.readouterr()
    assert said.err.splitlines() == ["Timers deleted: 200", "Timers deleted: 250"]
    assert "250 timers deleted" in said.out
    call_command("rotate_encryption", "--pause", "0")
    assert "encrypted" in capsys.readouterr().out


@pytest.fixture
def worker(monkeypatch):
    """What a worker does with bulk operations, between two looks of the command, in its transaction."""

    def work(_seconds):
        for operation in BulkOperation.objects.filter(finished_at=None):
            step_bulk(operation)

    monkeypatch.setattr("webtask_scheduler.scheduler.management.commands.timer.time.sleep", work)


@pytest.mark.django_db
def test_bulk_operation_is_counted_confirmed_and_waited_for(worker, capsys, monkeypatch, make_timer):
    for number in range(3):
        make_timer(f"http://a.example/{number}")
    make_timer("http://b.example/")
    monkeypatch.setattr("builtins.input", lambda asked: "n")
    with pytest.raises(Exception, match="Nothing was done"):
        call_command("timer", "bulk", "pause", "--host", "a.example")
    call_command("timer", "bulk", "pause", "--host", "a.example", "--dry-run")
    assert capsys.readouterr().out == "3 timers fit.\n3 timers fit.\n"
    assert not Delivery.objects.filter(state=State.PAUSED).exists()
    call_command("timer", "bulk", "pause", "--host", "a.example", "--yes")
    assert capsys.readouterr().out == "3 timers were changed.\n"
    assert Delivery.objects.filter(state=State.PAUSED).count() == 3
    with pytest.raises(Exception, match="Give a filter first"):
        call_command("timer", "bulk", "cancel", "--yes")
    call_command("timer", "bulk", "cancel", "--host", "b.example", "--yes", "--no-wait")
    assert "is begun" in capsys.readouterr().out
    assert BulkOperation.objects.filter(finished_at=None).count() == 1


@pytest.mark.django_db
def test_timers_of_one_moment_are_spread_from_the_command_line(worker, capsys, make_timer):
    at = timezone.now().replace(microsecond=0) + timedelta(hours=1)
    for _ in range(3):
        make_timer(due_at=at)
    spread = ["timer", "bulk", "spread", "--due-from", at.isoformat(), "--yes"]
    second = [*spread, "--due-to", (at + timedelta(microseconds=1)).isoformat()]
    for words, said in (
        ([*spread, "--spread-seconds", "600"], "due_from and due_to"),
        (second, "Say over how many seconds"),
        ([*second, "--spread-seconds", "0"], "must be from 1 to 86400"),
        (["timer", "bulk", "pause", "--host", "a.example", "--spread-seconds", "60"], "is for replay and spread"),
    ):
        with pytest.raises(CommandError, match=said):
            call_command(*words)
    assert not BulkOperation.objects.exists()
    call_command(*second, "--spread-seconds", "600")
    assert capsys.readouterr().out == "3 timers were changed.\n"
    dues = Delivery.objects.filter(state=State.SCHEDULED).values_list("due_at", flat=True)
    assert all(at < due <= at + timedelta(seconds=600) for due in dues)


@pytest.mark.django_db
def test_waiting_for_a_bulk_operation_may_be_broken_off(monkeypatch, make_timer):
    make_timer()

    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("webtask_scheduler.scheduler.management.commands.timer.time.sleep", interrupt)
    with pytest.raises(Exception, match="The workers go on"):
        call_command("timer", "bulk", "pause", "--host", "a.example", "--yes")
    assert BulkOperation.objects.get().finished_at is None
