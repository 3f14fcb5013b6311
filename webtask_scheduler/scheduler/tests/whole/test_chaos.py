"""Acceptance under fire: faults one by one in the middle of a burst, and a short run of many at random.

All tests share one set of processes with a PostgreSQL and a Redis of their own, see `chaos`; each has its own receiver.
"""

import itertools
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from webtask_scheduler.scheduler.tests.support.chaos import (
    KINDS,
    RECOVERY_SECONDS,
    Accepted,
    Customers,
    Fault,
    Saboteur,
    Stack,
    Struck,
    Target,
    Verdict,
    _explain,
    _judge_calls,
    _judge_edited,
    _judge_promises,
    _Row,
    judge,
    plan_faults,
    settle,
    suffer,
)
from webtask_scheduler.scheduler.tests.support.hostile import Server as HostileServer
from webtask_scheduler.scheduler.tests.support.receiver import Call

# Lines that a process may print about one outage, apart from one for each attempt.
LINES_PER_OUTAGE = 30


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("chaos")) as running:
        yield running


@pytest.fixture
def target():
    with Target() as running:
        yield running


class Watch:
    """What the processes print from now on, and whether one of them ends."""

    def __init__(self, stack):
        self._stack = stack
        self._sizes = {path: path.stat().st_size for path in stack.logs.iterdir()}
        self._ended = len(stack.ended)

    def check(self, *, lines=LINES_PER_OUTAGE, ends=0):
        assert len(self._stack.ended[self._ended :]) <= ends, self._stack.ended
        for path, size in self._sizes.items():
            if path.stem == "web":
                continue
            with path.open(errors="replace") as log:
                log.seek(size)
                said = [line for line in log if "attempt_ended" not in line]
            print(f"--- {path.stem}: {len(said)} lines\n{''.join(said)}")
            assert "Traceback" not in "".join(said)
            assert len(said) <= lines, f"{path.stem} printed {len(said)} lines"


def account(stack, target, customers, struck=()):
    settle(stack, target)
    found = judge(stack, target, customers, list(struck))
    print(found)
    assert found.wrong == []
    assert (found.lost, found.early, found.unfinished) == (0, 0, 0)
    return found


@pytest.mark.processes
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("who", "kind", "seconds"),
    [
        ("postgres", "restart", 1.0),
        ("redis", "crash", 1.0),
        ("redis", "empty", 0.0),
        ("redis", "freeze", 6.0),
        ("redis", "full", 3.0),
    ],
)
def test_fault_in_mid_burst_loses_nothing_and_is_told_in_a_few_lines(stack, target, who, kind, seconds):
    assert stack.until(stack.is_ready, seconds=30)
    customers, saboteur, watch = Customers(stack, target), Saboteur(stack), Watch(stack)
    customers.burst(160, seconds=2, path="/sleep/0.5")
    assert customers.answers == {"201": 160}
    target.wait_for(10)
    saboteur.begin(Fault(0, who, kind, seconds))
    saboteur.end()
    assert saboteur.errors == []
    found = account(stack, target, customers, saboteur.struck)
    # A start that is committed and whose outcome is not: neither a broker nor an orderly restart leaves one.
    assert found.duplicates == {}
    # Seen once in some twenty crashes of Redis: a worker that was just reconnecting ends, and is started again.
    watch.check(ends=1 if (who, kind) == ("redis", "crash") else 0)


# Not libfaketime: while it leaves the monotonic clock alone, as setting a clock does, every time.sleep of Python fails.
CLOCK_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long off(void) { return atol(getenv("CLOCK_OFF_SECONDS")); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += off();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture(scope="module")
def clock_shim(tmp_path_factory):
    """Return a library that, preloaded, sets the clock of one process off."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or sys.platform != "linux":
        pytest.skip("setting the clock of one process off takes Linux and a C compiler, for a library to preload")
    directory = tmp_path_factory.mktemp("clock")
    (directory / "clock.c").write_text(CLOCK_SHIM)
    library = directory / "clock.so"
    command = [compiler, "-shared", "-fPIC", "-o", library, directory / "clock.c", "-ldl"]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("the C compiler cannot build a library: its headers are missing")
    return str(library)


@pytest.mark.processes
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("name", "off"), [("web", 2), ("worker-1", 2), ("worker-1", -2), ("beat-1", 2)])
def test_clock_of_one_process_is_off_and_nothing_is_early_or_late(stack, target, clock_shim, name, off):
    stack.variables[name] = {"LD_PRELOAD": clock_shim, "CLOCK_OFF_SECONDS": str(off)}
    watch = Watch(stack)
    try:
        stack.kill(name)
        stack._wait_for(name)
        if name != "web":
            (line,) = [line for line in stack.log(name).splitlines() if "ready." in line or "beat: Starting" in line]
            told = datetime.fromisoformat(line[:23]).replace(tzinfo=UTC).timestamp()
            written = (stack.logs / f"{name}.log").stat().st_mtime
            assert abs(told - written - off) < 1.5
        assert stack.until(stack.is_ready, seconds=30)
        customers = Customers(stack, target)
        begun = time.time()
        customers.burst(40, seconds=2)
        posted = time.time()
        found = account(stack, target, customers)
        assert all(begun + 2 <= promise.due_at <= posted + 2 for promise in customers.accepted)
        assert found.calls == 40
        assert found.worst_late_seconds < RECOVERY_SECONDS
        watch.check(lines=100)  # with the banner of a start
    finally:
        del stack.variables[name]
        stack.kill(name)


@pytest.mark.processes
# Most of it is patience for a slow machine.
@pytest.mark.timeout(400)
def test_many_faults_at_random_lose_nothing(stack, target):
    plan = plan_faults(seed=5, seconds=15)
    with HostileServer() as hostile:
        report = suffer(stack, target, hostile, plan, seed=5, seconds=15, rate=15, say=print)
    assert report["wrong"] == []
    assert report["accepted"] > 50
    assert report["called"] == report["accepted"]
    assert report["hostile"] > 2
    assert report["bulks"] > 1


# The account itself


def test_plan_depends_on_the_seed_alone_and_spares_who_was_just_hit():
    plan = plan_faults(seed=3, seconds=600)
    assert plan == plan_faults(seed=3, seconds=600)
    assert plan != plan_faults(seed=4, seconds=600)
    assert {(fault.target, fault.kind) for fault in plan} == {(who, kind) for who in KINDS for kind in KINDS[who]}
    for who in KINDS:
        mine = [fault for fault in plan if fault.target == who]
        assert all(one.at + one.seconds + 5 <= two.at + 0.01 for one, two in itertools.pairwise(mine))


def call(number, at):
    return Call(at, "/", {"webhook-id": "d"}, b'{"attempt": %d}' % number, 1)


@pytest.mark.parametrize(
    ("errors", "number", "crashes", "reason"),
    [
        ({1: "lost", 2: ""}, 2, [], "outcome lost"),
        ({1: "status", 2: ""}, 2, [], "retry"),
        ({1: "", 2: ""}, 2, [], "not explained: attempt 1 is recorded as a success"),
        ({2: ""}, 2, [], "not explained: attempt 1 has no record"),
        ({1: ""}, 3, [], "not explained: its start is not in the database"),
        ({1: ""}, 1, [], "not explained: its number was called before"),
        ({1: ""}, 1, [50.0, 150.0], "not explained: its number was called before"),
        ({1: ""}, 1, [100.3], "start forgotten by a crash of PostgreSQL"),
    ],
)
def test_second_call_needs_an_explanation(errors, number, crashes, reason):
    row = _Row("t", 90.0, "succeeded", 2, errors)
    assert _explain(row, [call(1, 100.0)], call(number, 110.0), crashes) == reason


def test_promise_without_a_row_or_a_call_is_lost():
    found = Verdict()
    rows = {"d": _Row("uncalled", 1.0, "scheduled", 0)}
    _judge_promises(found, rows, {}, [Accepted("gone", 1.0), Accepted("uncalled", 1.0)])
    assert (found.lost, found.called, found.passed) == (2, 0, False)


def test_early_call_is_told():
    found = Verdict()
    struck = [Struck(Fault(0, "beat-1", "kill"), 80.0, 81.0)]
    list(_judge_calls(found, "d", _Row("t", 90.0, "succeeded", 1, {1: ""}), [call(1, 89.999)], struck))
    assert (found.early, found.passed) == (1, False)


@pytest.mark.parametrize(
    ("row", "calls", "crashes", "wrong"),
    [
        (_Row("t", 90.0, "cancelled", 1, {1: ""}), [call(1, 91.0)], [], []),
        (_Row("t", 90.0, "failed", 2, {1: "status", 2: "status"}), [call(1, 91.0), call(2, 99.0)], [], []),
        (_Row("t", 90.0, "succeeded", 1, {1: ""}), [call(1, 89.0)], [], ["too early"]),
        (_Row("t", 90.0, "paused", 0), [call(1, 91.0)], [], ["not written down"]),
        (
            _Row("t", 90.0, "succeeded", 2, {1: "", 2: ""}),
            [call(1, 91.0), call(2, 92.0)],
            [],
            ["recorded as a success"],
        ),
        (None, [call(1, 91.0)], [], ["not written down"]),
        (None, [call(1, 91.0)], [92.0], []),
    ],
)
def test_calls_of_edited_timers_are_each_accounted_for(row, calls, crashes, wrong):
    found = Verdict()
    _judge_edited(found, {"d": row} if row else {}, {"d": calls}, crashes)
    assert len(found.wrong) == len(wrong)
    assert all(text in line for line, text in zip(found.wrong, wrong, strict=True))
