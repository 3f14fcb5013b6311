"""The policy, as tables, and as what holds for any policy."""

import json
import random
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from webtask_scheduler.scheduler.models import ErrorKind, State
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.retry import DEFAULT, Policy, Verdict, decide, retry_after_seconds
from webtask_scheduler.scheduler.tests.support.cases import each

ORDINARY = sorted(set(ErrorKind.values) - retry.PERMANENT - retry.AT_ONCE - retry.GIVEN_BACK)
NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
DAY = 86400.0


def waits(policy, attempts):
    decisions = [decide(error="status", attempt=attempt, policy=policy) for attempt in attempts]
    assert all(decision.verdict is Verdict.RETRY for decision in decisions)
    return [decision.wait_seconds for decision in decisions]


def any_policy(source):
    """Return a policy within the bounds that the API keeps, at times at their very ends."""

    def between(least, most):
        return source.choice([least, most, source.uniform(least, most)])

    return Policy(
        max_attempts=source.randint(1, 100),
        backoff=source.choice(["exponential", "fixed", "list"]),
        min_seconds=between(0.1, DAY),
        max_seconds=between(0.1, DAY),
        multiplier=between(1, 10),
        jitter=between(0, 1),
        delays_seconds=tuple(between(0, DAY) for _ in range(source.randint(1, 100))),
        max_age_seconds=source.choice([None, between(0, retry.MAX_AGE_SECONDS)]),
    )


@pytest.fixture(scope="module")
def policies():
    source = random.Random(20300101)
    return [any_policy(source) for _ in range(2000)]


def test_success_ends_it():
    assert decide(error="", attempt=1).verdict is Verdict.SUCCEEDED


@each(("attempt", "wait"), [(1, 5), (2, 15), (3, 45), (4, 135)])
def test_failure_waits_exponentially_with_jitter(attempt, wait):
    found = waits(DEFAULT, [attempt] * 200)
    assert all(0.8 * wait <= seconds <= 1.2 * wait for seconds in found)
    assert len(set(found)) > 100


@each("error", ORDINARY)
def test_what_cannot_do_better_is_given_up_whatever_its_kind(error):
    assert decide(error=error, attempt=1).verdict is Verdict.RETRY
    assert decide(error=error, attempt=1, permanent=True).verdict is Verdict.GIVE_UP


def test_exponential_waits_grow_to_the_longest():
    policy = Policy(max_attempts=10, min_seconds=1, multiplier=2, max_seconds=20, jitter=0)
    assert waits(policy, range(1, 10)) == [1, 2, 4, 8, 16, 20, 20, 20, 20]


def test_fixed_waits_are_all_alike():
    assert waits(Policy(backoff="fixed", min_seconds=7, max_seconds=1, jitter=0), range(1, 5)) == [7, 7, 7, 7]


def test_listed_waits_come_in_turn_and_the_last_again():
    policy = Policy(max_attempts=6, backoff="list", delays_seconds=(0, 60, 30), jitter=0)
    assert waits(policy, range(1, 6)) == [0, 60, 30, 30, 30]


@each("error", ORDINARY)
def test_last_failure_gives_up(error):
    assert decide(error=error, attempt=DEFAULT.max_attempts - 1).verdict is Verdict.RETRY
    assert decide(error=error, attempt=DEFAULT.max_attempts) == retry.Decision(Verdict.GIVE_UP)


def test_one_attempt_means_no_retry():
    assert decide(error="timeout", attempt=1, policy=Policy(max_attempts=1)).verdict is Verdict.GIVE_UP


def test_url_that_cannot_be_called_gives_up_at_once():
    assert decide(error="url", attempt=1) == retry.Decision(Verdict.GIVE_UP)


def test_receiver_that_is_gone_for_good_ends_it_and_pauses_what_recurs():
    assert decide(error="status", attempt=1, status_code=410) == retry.Decision(Verdict.GIVE_UP, pause=True)


def test_status_410_that_a_timer_takes_for_a_success_is_one():
    assert decide(error="", attempt=1, status_code=410) == retry.Decision(Verdict.SUCCEEDED)


@each("status_code", [301, 400, 404, 429, 500, 503])
def test_any_other_status_is_tried_again(status_code):
    decision = decide(error="status", attempt=1, status_code=status_code)
    assert (decision.verdict, decision.pause) == (Verdict.RETRY, False)


def test_lost_call_is_tried_again_at_once_but_counts():
    assert decide(error="lost", attempt=1) == retry.Decision(Verdict.RETRY, 0.0)
    assert decide(error="lost", attempt=DEFAULT.max_attempts).verdict is Verdict.GIVE_UP


def test_interrupted_call_is_always_given_back():
    later = {"attempt": DEFAULT.max_attempts, "age_seconds": 2.0 * retry.MAX_AGE_SECONDS}
    assert decide(error="interrupted", **later) == retry.Decision(Verdict.RETRY, 0.0)


def test_interrupted_call_is_not_given_back_later_than_its_timer_allows():
    policy = Policy(max_age_seconds=60)
    assert decide(error="interrupted", attempt=1, policy=policy, age_seconds=60).verdict is Verdict.RETRY
    assert decide(error="interrupted", attempt=1, policy=policy, age_seconds=61).verdict is Verdict.GIVE_UP


@each("status_code", [400, 429, 500, 503])
def test_receiver_that_asks_for_time_is_given_it(status_code):
    decision = decide(error="status", attempt=1, status_code=status_code, retry_after_seconds=600)
    assert decision == retry.Decision(Verdict.RETRY, 600)


def test_receiver_that_asks_for_less_than_the_policy_waits_gets_the_policys():
    found = [decide(error="status", attempt=3, retry_after_seconds=10).wait_seconds for _ in range(50)]
    assert all(0.8 * 45 <= wait <= 1.2 * 45 for wait in found)


def test_jitter_never_comes_before_what_was_asked_for():
    policy = Policy(min_seconds=10, jitter=1)
    found = [decide(error="status", attempt=1, policy=policy, retry_after_seconds=10).wait_seconds for _ in range(200)]
    assert min(found) == 10
    assert max(found) > 15


@each("policy", [DEFAULT, Policy(max_age_seconds=retry.MAX_AGE_SECONDS)])
def test_retry_later_than_seven_days_is_given_up(policy):
    age = retry.MAX_AGE_SECONDS - 100
    for asked, verdict in ((100, Verdict.RETRY), (101, Verdict.GIVE_UP)):
        decision = decide(error="status", attempt=1, policy=policy, retry_after_seconds=asked, age_seconds=age)
        assert decision.verdict is verdict


@each(("most", "verdict"), [(60, Verdict.RETRY), (59, Verdict.GIVE_UP), (0, Verdict.GIVE_UP)])
def test_retry_later_than_its_timer_allows_is_given_up(most, verdict):
    policy = Policy(backoff="fixed", min_seconds=10, jitter=0, max_age_seconds=most)
    assert decide(error="timeout", attempt=1, policy=policy, age_seconds=50).verdict is verdict


def test_lost_call_of_too_old_a_promise_is_given_up():
    assert decide(error="lost", attempt=1, policy=Policy(max_age_seconds=10), age_seconds=11).verdict is Verdict.GIVE_UP


def test_waits_of_any_policy_are_within_its_bounds(policies):
    for policy in policies:
        listed = policy.delays_seconds if policy.backoff == "list" else (policy.min_seconds,)
        least = min(*listed, policy.max_seconds) if policy.backoff == "exponential" else min(listed)
        most = policy.max_seconds if policy.backoff == "exponential" else max(listed)
        for attempt in range(1, policy.max_attempts):
            decision = decide(error="status", attempt=attempt, policy=policy)
            if decision.verdict is Verdict.RETRY:
                assert least * (1 - policy.jitter) <= decision.wait_seconds <= most * (1 + policy.jitter)
                assert decision.wait_seconds >= 0


def test_exponential_waits_of_any_policy_never_shrink(policies):
    for policy in policies:
        if policy.backoff == "exponential":
            steady = replace(policy, jitter=0.0, max_age_seconds=None)
            found = waits(steady, range(1, policy.max_attempts))
            assert all(before <= after for before, after in pairwise(found))


def test_no_policy_makes_more_attempts_or_later_ones_than_it_allows(policies):
    source = random.Random(7)
    for policy in policies:
        attempt, age = 1, source.choice([0.0, 30.0, DAY])
        while True:
            error = source.choice([*ORDINARY, "lost"])
            asked = source.choice([None, 0.0, 10.0, DAY])
            decision = decide(error=error, attempt=attempt, policy=policy, retry_after_seconds=asked, age_seconds=age)
            if decision.verdict is Verdict.GIVE_UP:
                break
            age += decision.wait_seconds
            attempt += 1
            assert attempt <= policy.max_attempts
            assert age <= (retry.MAX_AGE_SECONDS if policy.max_age_seconds is None else policy.max_age_seconds)
            assert error == "lost" or decision.wait_seconds >= (asked or 0)


def test_policy_is_read_from_what_json_keeps_of_it(policies):
    for policy in policies:
        assert Policy.read(json.loads(json.dumps(asdict(policy)))) == policy


def test_policy_that_says_nothing_is_the_default_itself():
    assert Policy.read(None) is DEFAULT
    assert Policy.read({}) is DEFAULT


def test_policy_of_a_newer_release_can_be_read():
    assert Policy.read({"max_attempts": 3, "mood": "calm"}) == Policy(max_attempts=3)


@each(
    ("header", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 120 ", 120),
        ("1.5", 1.5),
        ("86401", DAY),
        ("9" * 100, DAY),
        ("Tue, 01 Jan 2030 12:02:00 GMT", 120),
        ("Tue, 01 Jan 2030 13:02:00 +0100", 120),
        ("Tue, 01 Jan 2030 12:02:00", 120),
        ("Tue, 01 Jan 2030 12:02:00 -0000", 120),
        ("Tuesday, 01-Jan-30 12:02:00 GMT", 120),
        ("Tue Jan  1 12:02:00 2030", 120),
        ("Tue, 01 Jan 2030 11:00:00 GMT", 0),
        ("Wed, 01 Jan 2031 12:00:00 GMT", DAY),
        ("Fri, 31 Dec 9999 23:59:59 -2359", DAY),
    ],
)
def test_retry_after_is_read(header, seconds):
    assert retry_after_seconds(header, now=NOW) == seconds


@each(
    "header",
    [
        "",
        " ",
        "-1",
        "+1",
        "1e3",
        "inf",
        "nan",
        "0x10",
        "\u0661\u0662",
        "soon",
        "5 minutes",
        "120, 60",
        "2030-01-01T12:02:00Z",
        "Tue, 41 Jan 2030 12:02:00 GMT",
        "Tue, 01 Jan 2030 25:02:00 GMT",
        "Tue, 01 Jan 99999 12:02:00 GMT",
        "Tue, 01 Jan 2030 12:02:00 +9999",
    ],
)
def test_retry_after_that_says_nothing_sensible_is_passed_over(header):
    assert retry_after_seconds(header, now=NOW) is None


def test_any_retry_after_is_read_or_passed_over():
    source = random.Random(3)
    good = (NOW + timedelta(minutes=2)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    for _ in range(5000):
        text = "".join(source.choice([letter, letter, letter, chr(source.randrange(256)), ""]) for letter in good)
        wait = retry_after_seconds(text, now=NOW)
        assert wait is None or 0 <= wait <= retry.RETRY_AFTER_MOST_SECONDS


def test_words_are_those_of_the_models():
    kinds = {*retry.PERMANENT, *retry.AT_ONCE, *retry.GIVEN_BACK}
    assert kinds <= set(ErrorKind.values)
    assert {verdict.value for verdict in Verdict} <= set(State.values)


def test_default_policy_is_the_one_that_is_documented():
    assert {item.name: item.default for item in fields(Policy)} == {
        "max_attempts": 5,
        "backoff": "exponential",
        "min_seconds": 5.0,
        "max_seconds": 3600.0,
        "multiplier": 3.0,
        "jitter": 0.2,
        "delays_seconds": (),
        "max_age_seconds": None,
    }
