"""The management commands, as an operator types them."""

import io
import sys

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models.signals import pre_migrate

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import CallStop
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due

pytestmark = pytest.mark.django_db


@pytest.fixture
def type_in(monkeypatch):
    """Return a function that has the operator type a text."""

    def type_text(text):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    return type_text


@pytest.fixture
def logged(caplog):
    """Return a function that returns the lines logged about stops."""
    return lambda: [text for record in caplog.records if (text := record.getMessage()).startswith("calls_")]


def test_calls_are_stopped_shown_and_resumed(capsys):
    call_command("calls", "stop", host="API.example.com", reason="they asked")
    call_command("calls", "status")
    assert "api.example.com: stopped since" in (out := capsys.readouterr().out)
    assert "(they asked)" in out
    call_command("calls", "resume", host="api.example.com")
    assert not CallStop.objects.exists()


def test_resuming_what_is_not_stopped_says_so_and_logs_nothing(logged):
    with pytest.raises(CommandError, match="not stopped"):
        call_command("calls", "resume", everything=True)
    with pytest.raises(CommandError, match="not stopped"):
        call_command("calls", "resume", host="a.example")
    assert logged() == []


@pytest.mark.parametrize("action", ["stop", "resume"])
@pytest.mark.parametrize("given", [{}, {"host": " "}, {"host": "a.example", "everything": True}])
def test_all_hosts_have_to_be_said_and_are_not_what_is_left_out(action, given):
    CallStop.objects.create(host="b.example")
    with pytest.raises(CommandError, match="--all for every one"):
        call_command("calls", action, **given)
    assert CallStop.objects.get().host == "b.example"


def test_stop_of_all_is_asked_back(type_in, capsys, make_timer):
    make_timer()
    for text in ("", "n\n", "\n"):
        type_in(text)
        with pytest.raises(CommandError, match="Nothing was stopped"):
            call_command("calls", "stop", everything=True)
    assert not CallStop.objects.exists()
    assert "1 timer matches. Stop the calls of all of them?" in capsys.readouterr().out
    type_in("y\n")
    call_command("calls", "stop", everything=True)
    assert CallStop.objects.get().host == ""
    call_command("calls", "resume", everything=True)
    call_command("calls", "stop", everything=True, yes=True)
    assert CallStop.objects.get().host == ""


@pytest.mark.parametrize(
    "spelling",
    [
        "a.example:8443",
        "https://A.Example:8443/x?y#z",
        "A.EXAMPLE.:8443",
        " a.example:8443 ",
        "http://u:p@a.example:8443",
    ],
)
def test_host_is_taken_as_timers_have_it_however_it_is_written(spelling, capsys, make_timer):
    make_timer("https://a.example:8443/x", delay_seconds=-1)
    call_command("calls", "stop", host=spelling)
    assert "Calls to a.example:8443 are stopped. 1 timer matches." in capsys.readouterr().out
    assert claim_due().held == []
    call_command("calls", "resume", host=spelling)
    assert not CallStop.objects.exists()


@pytest.mark.parametrize("spelling", ["two words", "*", "http://", "a.example:http", "a.example:70000", "a..example"])
def test_what_is_no_host_is_refused_in_a_sentence(spelling):
    with pytest.raises(CommandError, match="is no host: write it as in the URL"):
        call_command("calls", "stop", host=spelling)
    assert not CallStop.objects.exists()


def test_host_without_the_port_that_timers_have_says_that_none_matches_and_which_hosts_begin_so(capsys, make_timer):
    make_timer("https://example.com:8443/")
    make_timer("https://example.com.other/")
    call_command("calls", "stop", host="example.com")
    said = "No timer matches; hosts known that begin so: example.com.other, example.com:8443."
    assert said in capsys.readouterr().out
    call_command("calls", "stop", host="example.com:9443")
    assert "No timer matches; hosts known that begin so: example.com" in capsys.readouterr().out


def test_stop_and_resume_are_logged_with_who_and_why(logged, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    call_command("calls", "stop", host="a.example", reason="a storm")
    call_command("calls", "resume", host="a.example", reason="it is over")
    assert logged() == [
        "calls_stopped host=a.example by='ann at a shell' reason='a storm'",
        "calls_resumed host=a.example by='ann at a shell' reason='it is over'",
    ]


def test_status_counts_what_waits_while_all_calls_are_stopped(capsys, make_timer):
    for seconds in (-30, -10, 60):
        make_timer("http://a.example/", delay_seconds=seconds)
    make_timer("http://b.example/", delay_seconds=-5)
    services.stop_calls(host="b.example")
    claimed = claim_due(limit=10)
    assert len(claimed.held) == 2
    services.stop_calls(everything=True)
    for seconds in (-20, -10):
        make_timer("http://a.example/", delay_seconds=seconds)
    claim_due()
    call_command("calls", "status")
    out = capsys.readouterr().out
    assert "all hosts: stopped since" in out
    # One was held at its host's stop; two came due since, which nobody may claim.
    assert "3 deliveries wait for calls to be resumed" in out
    assert "4 deliveries overdue, the oldest for 3" in out
    assert "(2 claimed by beats, 0 put off by workers)" in out
    assert "beat: no beat was ever seen" in out
    assert "workers: no worker was ever seen" in out


def test_resuming_all_says_which_hosts_stay_stopped(capsys):
    services.stop_calls(host="a.example")
    services.stop_calls(everything=True)
    call_command("calls", "resume", everything=True)
    assert "Calls to a.example are stopped still." in capsys.readouterr().out


def test_migration_may_take_longer_than_any_other_statement():
    limits = []

    def note(**_):
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            limits.append(cursor.fetchone()[0])

    pre_migrate.connect(note)
    try:
        call_command("migrate", verbosity=0)
    finally:
        pre_migrate.disconnect(note)
    note()
    assert set(limits[:-1]) == {"0"}
    assert limits[-1] == "30s"
