"""Which delivery a worker calls next: pure, with a clock of the test's own."""

import uuid
from dataclasses import replace
from itertools import pairwise

from webtask_scheduler.dispatch.queue import Held
from webtask_scheduler.scheduler.delivery import hosts
from webtask_scheduler.scheduler.delivery.hosts import Line


def held(host, *, owner=0):
    return Held(0.0, 10.0, uuid.uuid4(), uuid.uuid4(), host=host, flow=owner << 32 | 1)


def add(line, host, count=1, *, owner=0):
    for _ in range(count):
        line.add(held(host, owner=owner))


def pick(line, now=0.0, *, most=1000):
    """Pick and begin; return the hosts that are called, and those put off."""
    start, later = line.pick(now, most=most)
    for item in start:
        line.begun(item.key, now)
    return [item.host for item in start], [item.host for item, _ in later]


def answer_all(line, now):
    for key in list(line.running):
        line.release(key, answered_at=now)


def known_as_quick(line, *names, now=0.0):
    for name in names:
        add(line, name)
        pick(line, now)
        answer_all(line, now + 0.005)


def test_host_of_which_nothing_is_known_gets_few_until_it_has_answered():
    line = Line(slots=32, room=512)
    add(line, "new", 100)
    assert pick(line)[0] == ["new"] * hosts.WAITING_LEAST
    answer_all(line, 0.005)
    assert pick(line, 0.005)[0] == ["new"] * round(32 * hosts.HOST_SHARE)


def test_hosts_that_are_not_known_to_be_quick_share_half_of_the_slots():
    line = Line(slots=32, room=512)
    known_as_quick(line, "quick")
    for number in range(1000):
        add(line, f"new-{number}")
    assert len(pick(line)[0]) == 16
    add(line, "quick", 3)
    assert pick(line)[0] == ["quick"] * 3


def test_call_that_only_waits_gives_its_slot_up():
    line = Line(slots=4, room=512)
    for number in range(8):
        add(line, f"new-{number}")
    assert len(pick(line, 0.0)[0]) == 2
    assert len(pick(line, hosts.PATIENCE_SECONDS + 0.001)[0]) == 2
    assert len(pick(line, 2 * hosts.PATIENCE_SECONDS + 0.002)[0]) == 2


def test_flow_that_had_nothing_waiting_goes_before_crowds():
    line = Line(slots=8, room=512)
    known_as_quick(line, "crowd", "seldom")
    add(line, "crowd", 1000)
    pick(line, most=4)
    add(line, "seldom")
    assert pick(line, most=1)[0] == ["seldom"]


def test_crowd_to_a_quick_host_takes_few_slots_while_others_are_called_and_most_when_alone():
    line = Line(slots=32, room=512)
    known_as_quick(line, "crowd", "other")
    add(line, "crowd", 1000)
    assert len(pick(line, 1.0)[0]) == round(32 * hosts.BESIDE_SHARE)
    answer_all(line, 1.005)
    # Nobody else was called meanwhile.
    assert len(pick(line, 1.1 + hosts.BESIDE_SECONDS)[0]) == round(32 * hosts.HOST_SHARE)


def test_quick_host_that_takes_its_time_has_more_slots_beside_others():
    line = Line(slots=32, room=512)
    for number in range(500):
        add(line, "steady")
        add(line, "other")
        pick(line, number / 10)
        answer_all(line, number / 10 + 0.015)
    add(line, "steady", 100)
    assert len(pick(line, 50.0)[0]) == 15


def test_hosts_that_hang_leave_places_for_the_first_calls_of_others():
    line = Line(slots=32, room=64)
    now = 0.0
    for number in range(500):
        add(line, f"hangs-{number}")
    # The room fills with them, first calls of unknown hosts included; each of those ends after a while.
    for step in range(400):
        now = step * 0.06
        pick(line, now)
        line.watch(now)
        for key, running in list(line.running.items()):
            if now - running.since >= line.seconds_most(key):
                line.release(key, answered_at=now)
    add(line, "fresh")
    called = []
    for step in range(400, 600):
        now = step * 0.06
        called += pick(line, now)[0]
        for key, running in list(line.running.items()):
            if running.flow.host.name == "fresh" or now - running.since >= line.seconds_most(key):
                line.release(key, answered_at=now)
    assert "fresh" in called


def test_delivery_that_is_claimed_anew_while_its_lost_claim_is_called_leaves_no_slot_behind():
    line = Line(slots=32, room=64)
    known_as_quick(line, "host")
    for number in range(100):
        lost = held("host")
        line.add(lost)
        line.add(replace(lost, token=uuid.uuid4()))
        pick(line, float(number))
        # One of them waits for its answer, as a call that outlives its lease does.
        line.pick(number + 2 * hosts.PATIENCE_SECONDS, most=0)
        answer_all(line, number + 0.2)
    host = line._hosts["host"]
    assert (host.slots, host.waiting, line._room.used, line._new_room.used, line._in_trial) == (0, 0, 0, 0, 0)
    add(line, "host", 5)
    assert pick(line, 1000.0)[0]


def test_crowd_of_names_does_not_make_quick_hosts_unknown():
    line = Line(slots=32, room=64)
    known_as_quick(line, "known")
    for number in range(2 * hosts.HOSTS_KEPT):
        add(line, f"name-{number}")
        pick(line, float(number))
        answer_all(line, float(number) + 1.0)
    for number in range(64):
        add(line, f"hangs-{number}")
        pick(line, 1e6 + number)
    add(line, "known", 5)
    assert pick(line, 2e6)[0].count("known") == 5


def test_owners_have_turns_however_many_hosts_they_call():
    line = Line(slots=32, room=512)
    names = [f"quick-{number}" for number in range(50)]
    known_as_quick(line, *names, "other")
    for name in names:
        add(line, name, 10, owner=1)
    pick(line, most=10)
    add(line, "other", 5, owner=2)
    assert pick(line, most=10)[0].count("other") == 5


def test_owner_may_have_as_many_in_the_waiting_room_as_are_free():
    line = Line(slots=32, room=20)
    now = 0.0
    put_off: list[str] = []
    for number in range(100):
        add(line, f"hangs-{number}", owner=1)
    for _ in range(40):
        now += hosts.PATIENCE_SECONDS + 0.001
        put_off += pick(line, now)[1]
    assert len(line.running) == 10
    assert len(put_off) == 90
    # Another owner finds room.
    add(line, "new", owner=2)
    assert pick(line, now)[0] == ["new"]


def test_slow_host_gets_calls_by_how_long_they_take():
    line = Line(slots=32, room=512)
    line._hosts["slow"] = hosts.Host("slow", seconds=0.8)
    line._hosts["hangs"] = hosts.Host("hangs", seconds=30.0)
    add(line, "slow", 1000)
    add(line, "hangs", 1000)
    now, called = 0.0, []
    for _ in range(20):
        now += hosts.PATIENCE_SECONDS + 0.001
        called += pick(line, now)[0]
    assert called.count("slow") == hosts.WAITING_MOST
    assert called.count("hangs") == hosts.WAITING_LEAST


def test_quick_hosts_that_hang_all_at_once_take_no_more_than_they_had_under_way():
    line = Line(slots=8, room=10)
    names = [f"quick-{number}" for number in range(30)]
    known_as_quick(line, *names)
    now = 1.0
    for name in names:
        add(line, name, 50)
    for _ in range(100):
        now += hosts.PATIENCE_SECONDS + 0.001
        pick(line, now)
    # Each begins one at least; once the room is full, none begins another.
    assert len(line.running) <= 10 + 8 + len(names)


def test_one_call_that_hangs_among_many_quick_ones_does_not_make_a_host_slow():
    line = Line(slots=32, room=512)
    known_as_quick(line, "mixed")
    add(line, "mixed")
    pick(line, 0.0)
    (hanging,) = line.running
    now = 0.0
    slow_for = 0
    for _ in range(400):
        now += 0.1
        add(line, "mixed")
        pick(line, now)
        for key in [key for key in line.running if key != hanging]:
            line.release(key, answered_at=now + 0.005)
        line.watch(now)
        slow_for += not line._hosts["mixed"].quick
    assert slow_for < 200


def test_nothing_is_forgotten():
    line = Line(slots=8, room=16)
    for number in range(300):
        add(line, f"host-{number % 40}", owner=number % 3)
    seen, put_off, now = 0, 0, 0.0
    while seen + put_off < 300:
        now += 0.01
        called, later = pick(line, now)
        seen += len(called)
        put_off += len(later)
        assert called or later or line.queued
        answer_all(line, now + 0.002)
        assert now < 60
    assert line.queued == 0
    assert not line._flows
    assert not line.running


def test_closing_takes_all_that_waits():
    line = Line(slots=8, room=16)
    add(line, "a", 20)
    started = len(pick(line)[0])
    assert len(list(line.drain())) == 20 - started
    assert line.queued == 0


# What all workers together may do to one host


def called_over(line, seconds, *, per_step=0.01, took=0.005, start=0.0):
    """Answer each call at once for some time; return when the calls to each host began."""
    begun = {}
    for step in range(round(seconds / per_step)):
        now = start + step * per_step
        for host in pick(line, now)[0]:
            begun.setdefault(host, []).append(now)
        answer_all(line, now + took)
    return begun


def test_host_gets_so_many_calls_a_second_and_others_all_they_want():
    line = Line(slots=32, room=512)
    line.share_hosts(per_second=10, in_flight=0, workers=1)
    known_as_quick(line, "bounded", "other", now=-10.0)
    for _ in range(200):
        add(line, "bounded")
        add(line, "other")
    begun = called_over(line, 5.0)
    # A second's worth at once, then ten a second.
    assert 55 <= len(begun["bounded"]) <= 61
    after = begun["bounded"][10:]
    assert all(b - a >= 0.99 for a, b in zip(after, after[10:], strict=False))
    # The other host has its own ten.
    assert abs(len(begun["other"]) - len(begun["bounded"])) <= 1
    line.share_hosts(per_second=0, in_flight=0, workers=1)
    assert len(called_over(line, 1.0, start=5.0)["other"]) > 100


def test_bound_of_calls_a_second_is_shared_by_owners_and_by_workers():
    workers = [Line(slots=32, room=512) for _ in range(4)]
    total = 0
    for line in workers:
        line.share_hosts(per_second=8, in_flight=0, workers=4)
        known_as_quick(line, "h", now=-10.0)
        for owner in range(3):
            add(line, "h", 100, owner=owner)
        total += len(called_over(line, 10.0)["h"])
    assert 80 <= total <= 8 * 10 + 4 * 2


def test_slow_rate_lets_one_call_begin_now_and_then():
    line = Line(slots=4, room=64)
    line.share_hosts(per_second=0.5, in_flight=0, workers=1)
    add(line, "h", 10)
    begun = called_over(line, 9.0)["h"]
    assert len(begun) == 5
    assert line.waits_for_slots
    assert all(1.99 <= b - a <= 2.1 for a, b in pairwise(begun))


def test_host_has_so_many_calls_under_way_and_not_one_more():
    line = Line(slots=32, room=512)
    line.share_hosts(per_second=0, in_flight=6, workers=2)
    known_as_quick(line, "h", "other")
    add(line, "h", 50)
    add(line, "other", 3)
    assert sorted(pick(line, 1.0)[0]) == ["h"] * 3 + ["other"] * 3
    # They leave their slots, and are under way still.
    assert pick(line, 1.0 + hosts.PATIENCE_SECONDS)[0] == []
    line.release(next(key for key, one in line.running.items() if one.flow.host.name == "h"), answered_at=1.1)
    assert pick(line, 1.2)[0] == ["h"]


def test_more_workers_than_calls_leave_one_to_each():
    line = Line(slots=32, room=512)
    line.share_hosts(per_second=0, in_flight=2, workers=5)
    known_as_quick(line, "h")
    add(line, "h", 5)
    assert pick(line, 1.0)[0] == ["h"]


def test_bounded_host_gives_back_what_waits_at_the_end():
    line = Line(slots=4, room=64)
    line.share_hosts(per_second=0.001, in_flight=0, workers=1)
    add(line, "h", 10)
    assert pick(line)[0] == ["h"]
    assert len(list(line.drain())) == 9
    assert not line.waits_for_slots
