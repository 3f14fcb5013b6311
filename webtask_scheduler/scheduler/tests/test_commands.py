"""The management commands, as an operator types them."""

import pytest
from django.core.management import CommandError, call_command

from webtask_scheduler.scheduler.models import CallStop

pytestmark = pytest.mark.django_db


def test_calls_are_stopped_shown_and_resumed(capsys):
    call_command("calls", "stop", host="API.example.com", reason="they asked")
    call_command("calls", "status")
    assert "api.example.com: stopped since" in (out := capsys.readouterr().out)
    assert "(they asked)" in out
    call_command("calls", "resume", host="api.example.com")
    assert not CallStop.objects.exists()


def test_resuming_what_is_not_stopped_says_so():
    with pytest.raises(CommandError, match="not stopped"):
        call_command("calls", "resume")
