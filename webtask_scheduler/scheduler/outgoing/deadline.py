"""Ends calls at their deadlines, whatever the other side does.

Timeouts of single reads do not bound a body that drips, a slow handshake or a resolver that hangs. A watchdog therefore
stops whatever a call waits for when its deadline has passed.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from webtask_scheduler.telemetry.events import event

WATCH_INTERVAL_SECONDS = 0.1


class Stoppable(Protocol):
    """Something that a thread waits for, and that another thread can stop. Stopping raises nothing."""

    def stop(self) -> None: ...


class Progress:
    """When a call reached each step, by the monotonic clock; 0.0 for a step that it has not reached.

    A call on a kept connection looks up, connects and secures nothing. Where redirects are followed, the latest counts.
    """

    __slots__ = ("connected", "first_byte", "resolved", "secured")

    def __init__(self) -> None:
        self.resolved = self.connected = self.secured = self.first_byte = 0.0


class Deadline:
    """The deadline of one call, how far the call has come, and what to stop when the deadline passes."""

    __slots__ = ("_lock", "_waits_for", "at", "ended_by", "progress")

    def __init__(self, at: float, progress: Progress | None = None) -> None:
        self.at = at
        self.progress = progress or Progress()
        # The kind of error that ended the call, or empty.
        self.ended_by = ""
        self._waits_for: Stoppable | None = None
        self._lock = threading.Lock()

    def attach(self, waits_for: Stoppable) -> None:
        """Remember what the call waits for from now on. Raises TimeoutError if the call has been ended."""
        with self._lock:
            self._waits_for = waits_for
            if self.ended_by:
                raise TimeoutError

    def detach(self) -> bool:
        """Forget what the call waits for; return whether it was not stopped."""
        with self._lock:
            self._waits_for = None
            return not self.ended_by

    def end(self, kind: str) -> None:
        # Under the lock, because a connection that was detached may serve another call right after.
        with self._lock:
            self.ended_by = self.ended_by or kind
            if self._waits_for is not None:
                self._waits_for.stop()

    def remaining(self) -> float:
        """Return the seconds left. Raises TimeoutError if no time is left or the call has been ended."""
        left = self.at - time.monotonic()
        if left <= 0 or self.ended_by:
            self.ended_by = self.ended_by or "timeout"
            raise TimeoutError
        return left


class Watchdog:
    """One thread that ends late calls and sometimes runs `tidy`, which returns whether it has more to do later."""

    def __init__(self, tidy: Callable[[], bool]) -> None:
        self._tidy = tidy
        self._deadlines: set[Deadline] = set()
        self._changed = threading.Condition()
        self._rests = False
        threading.Thread(target=self._run, name="call-watchdog", daemon=True).start()

    def add(self, deadline: Deadline) -> None:
        # Adding to a set and copying it are single steps of the interpreter. The lock is needed only to wake the
        # thread, which checks the set once more after it has announced that it rests.
        self._deadlines.add(deadline)
        if self._rests:
            with self._changed:
                self._changed.notify()

    def discard(self, deadline: Deadline) -> None:
        self._deadlines.discard(deadline)

    def end_all(self, kind: str) -> None:
        for deadline in list(self._deadlines):
            deadline.end(kind)

    def _run(self) -> None:
        more = False
        while True:
            with self._changed:
                self._rests = not more
                if self._rests and not self._deadlines:
                    self._changed.wait()
                self._rests = False
            time.sleep(WATCH_INTERVAL_SECONDS)
            # Every deadline depends on this thread: it must outlive any surprise.
            try:
                now = time.monotonic()
                for deadline in list(self._deadlines):
                    if deadline.at <= now:
                        deadline.end("timeout")
                more = self._tidy() or bool(self._deadlines)
            except Exception:
                event("call_watchdog_failed", level=logging.ERROR, exc_info=True)
                more = True
