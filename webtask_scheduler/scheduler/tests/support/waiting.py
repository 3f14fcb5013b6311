"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable

# How long a test waits for what must come. Long, since a machine may be busy: what comes costs only the time that it
# takes. How quickly it comes is for the benchmarks.
PATIENCE_SECONDS = 60.0


def wait_until(condition: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the condition holds; fails after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about within {seconds} s"
        time.sleep(0.02)
