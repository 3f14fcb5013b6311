"""Buckets and what is read from them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.tests.support.cases import each


@each(
    ("seconds", "bound"),
    [(-1.0, 0.001), (0.0, 0.001), (0.001, 0.001), (0.0011, 0.002), (0.1, 0.1), (3600.0, 3600.0), (3600.1, math.inf)],
)
def test_bucket_includes_its_bound(seconds, bound):
    assert histogram.bound_of(histogram.bucket_of(seconds)) == bound


def test_stored_bounds_are_those_that_were_promised():
    milliseconds = [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert list(histogram.BOUNDS) == [n / 1000 for n in milliseconds] + [1, 2, 5, 10, 20, 60, 300, 3600]
    assert len(histogram.empty()) == 18 == histogram.BUCKETS


@given(st.lists(st.floats(min_value=0, max_value=10_000), min_size=1), st.sampled_from([0.1, 50, 90, 99, 100]))
def test_percentile_lies_in_the_bucket_of_the_value_itself(values, percent):
    counts = histogram.empty()
    for value in values:
        counts[histogram.bucket_of(value)] += 1
    exact = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    assert histogram.percentile(counts, percent) == histogram.bucket_of(exact)


def test_nothing_is_known_of_an_empty_histogram():
    assert histogram.percentile(histogram.empty(), 50) is None
