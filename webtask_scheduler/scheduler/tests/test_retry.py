"""The policy, as a table."""

import pytest

from webtask_scheduler.scheduler import retry
from webtask_scheduler.scheduler.models import ErrorKind, State
from webtask_scheduler.scheduler.retry import Verdict, decide


def test_success_ends_it():
    assert decide(error="", attempt=1).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize(("attempt", "wait"), [(1, 5), (2, 15), (3, 45), (4, 135)])
def test_failure_waits_exponentially_with_jitter(attempt, wait):
    waits = [decide(error="status", attempt=attempt) for _ in range(200)]
    assert {decision.verdict for decision in waits} == {Verdict.RETRY}
    assert all(0.8 * wait <= decision.wait_seconds <= 1.2 * wait for decision in waits)
    assert len({decision.wait_seconds for decision in waits}) > 100


def test_last_failure_gives_up():
    assert decide(error="timeout", attempt=retry.MAX_ATTEMPTS).verdict is Verdict.GIVE_UP


def test_url_that_cannot_be_called_gives_up_at_once():
    assert decide(error="url", attempt=1).verdict is Verdict.GIVE_UP


def test_lost_call_is_tried_again_at_once_but_counts():
    assert decide(error="lost", attempt=1) == retry.Decision(Verdict.RETRY, 0.0)
    assert decide(error="lost", attempt=retry.MAX_ATTEMPTS).verdict is Verdict.GIVE_UP


def test_interrupted_call_is_always_given_back():
    assert decide(error="interrupted", attempt=retry.MAX_ATTEMPTS) == retry.Decision(Verdict.RETRY, 0.0)


def test_words_are_those_of_the_models():
    kinds = {*retry.PERMANENT, *retry.AT_ONCE, *retry.GIVEN_BACK}
    assert kinds <= set(ErrorKind.values)
    assert {verdict.value for verdict in Verdict} <= set(State.values)
