"""How the claim's room is divided: pure, so every rule is shown with numbers."""

from hypothesis import given
from hypothesis import strategies as st

from webtask_scheduler.dispatch.share import CLAIM_LIMIT, FLOW_FLOOR, OWNER_FLOOR, WINDOW, allot, lane_of, owner_of

FLOWS = st.integers(0, 5).flatmap(
    lambda owner: st.integers(0, 40).map(lambda host: ((owner ^ host) & 63) << 57 | owner << 32 | host)
)
CLAIMED = st.dictionaries(FLOWS, st.integers(1, 400), max_size=60)


def test_flow_alone_gets_half_of_the_window():
    claimed: dict[int, int] = {}
    for _ in range(20):
        for flow, limit in allot([7], claimed).items():
            claimed[flow] = claimed.get(flow, 0) + limit
    assert claimed == {7: WINDOW // 2}


def test_flow_without_anything_is_served_however_much_others_hold():
    claimed = {1: WINDOW // 2, 2: WINDOW // 4, 3: WINDOW // 4 - 1}
    assert allot([1, 2, 3, 4], claimed) == {4: FLOW_FLOOR}


def test_owner_without_anything_is_served_though_the_window_is_full():
    claimed = dict.fromkeys(range(500), 4)
    assert allot([1, 900], claimed) == {}
    assert allot([1, 5 << 32 | 1], claimed) == {5 << 32 | 1: FLOW_FLOOR}


def test_claim_is_shared_by_owners_first():
    many = [1 << 32 | host for host in range(50)]
    one = 2 << 32 | 1
    limits = allot([*many, one], {})
    assert limits[one] == CLAIM_LIMIT // 2
    assert sum(limits[flow] for flow in many) <= CLAIM_LIMIT // 2


def test_flow_that_may_take_a_few_more_waits_for_more_room():
    assert allot([1], {1: WINDOW // 2 - 5}) == {}


@given(due=st.sets(FLOWS, max_size=60), claimed=CLAIMED)
def test_no_more_than_one_statement_carries_and_nothing_below_one(due, claimed):
    limits = allot(due, claimed)
    assert sum(limits.values()) <= CLAIM_LIMIT
    assert all(limit >= 1 for limit in limits.values())
    assert limits.keys() <= due


@given(due=st.sets(FLOWS, min_size=1, max_size=60), claimed=CLAIMED)
def test_some_flow_with_nothing_is_always_served(due, claimed):
    fresh = {flow for flow in due if flow not in claimed}
    limits = allot(due, claimed)
    owners = {owner_of(flow) for flow in claimed}
    if fresh and (sum(claimed.values()) < WINDOW or any(owner_of(flow) not in owners for flow in fresh)):
        assert limits.keys() & fresh


def test_lane_of_a_flow_is_that_of_the_column(db, make_timer):
    from webtask_scheduler.scheduler.models import Delivery

    for number in range(50):
        make_timer(f"http://host-{number}.example/")
    assert all(lane_of(delivery.flow) == delivery.lane for delivery in Delivery.objects.all())
    assert OWNER_FLOOR > FLOW_FLOOR
