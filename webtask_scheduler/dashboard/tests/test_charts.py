"""The geometry of charts, from numbers alone."""

import math

from webtask_scheduler.dashboard import charts

MARKS = [(0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (3600.0, "1 h")]


def drawn(*values, bound=0.1):
    columns = [(str(number), one) for number, one in enumerate(values)]
    return charts.levels(columns, marks=MARKS, bound=(bound, "the aim"))


def test_levels_are_logarithmic_and_a_gap_is_a_gap():
    found = drawn((0.001, 0.01), (0.01, 0.1), (), (0.1, 0.1))
    # The scale goes from a third of the lowest mark to three times the highest value.
    decade = 100 * math.log(10) / math.log(0.3 / (0.001 / 3))
    heights = [round(float(one.y), 1) for one in (*found.marks, found.bound)]
    assert [one.label for one in (*found.marks, found.bound)] == ["1 ms", "10 ms", "the aim"]
    assert abs(heights[0] - heights[1] - decade) < 0.2
    assert abs(heights[1] - heights[2] - decade) < 0.2
    one, ten, hundred = (f"{height:g}" for height in heights)
    # The highest series first, each in two parts, and none in the third quarter.
    assert found.areas == [
        f"M0.0 100V{ten}H250.0V{hundred}H500.0V100zM750.0 100V{hundred}H1000.0V100z",
        f"M0.0 100V{one}H250.0V{ten}H500.0V100zM750.0 100V{hundred}H1000.0V100z",
    ]
    assert [(column.x, column.width, column.label) for column in found.columns] == [
        (250.0 * number, 200.0, str(number)) for number in range(4)
    ]


def test_levels_reach_the_top_where_a_value_has_no_bound():
    found = drawn((0.001, math.inf))
    assert found.areas[0] == "M0.0 100V0H1000.0V100z"
    assert [one.label for one in found.marks] == ["1 ms", "10 ms", "1 s", "1 h"]
    assert all(0 < one.y < 100 for one in (*found.marks, found.bound))


def test_aim_is_drawn_wherever_it_is():
    for bound in (0.0005, 0.001, 0.05, 7200.0):
        found = drawn((0.001,), bound=bound)
        assert 0 < found.bound.y < 100, bound
        assert "the aim" not in [one.label for one in found.marks]
    assert drawn().areas == []
