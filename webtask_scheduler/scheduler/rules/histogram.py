"""Histograms with the same buckets everywhere: what is counted, and what a histogram says of percentiles.

A histogram is a list of counts, one for each bucket. Stored rows hold such lists, so the bounds never change.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

# The upper bounds of the buckets, in seconds; a bucket includes its bound. What is longer has a bucket of its own.
BOUNDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 3600.0),
)
BUCKETS = len(BOUNDS) + 1


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket into which a time falls."""
    return bisect_left(BOUNDS, seconds)


def empty() -> list[int]:
    return [0] * BUCKETS


def bound_of(bucket: int) -> float:
    """Return the upper bound of a bucket in seconds; infinite for the last one."""
    return BOUNDS[bucket] if bucket < len(BOUNDS) else math.inf


def percentile(counts: Sequence[int], percent: float) -> int | None:
    """Return the bucket in which a percentile lies; None for an empty histogram.

    That is what is known of it: it is at most the bucket's bound, and above that of the bucket before.
    """
    wanted = max(1, math.ceil(sum(counts) * percent / 100))
    reached = 0
    for bucket, count in enumerate(counts):
        reached += count
        if reached >= wanted:
            return bucket
    return None
