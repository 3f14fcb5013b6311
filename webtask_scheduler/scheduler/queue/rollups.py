"""Counts what the service does, by minute and by host and hour, for `/metrics` and for charts.

Each process counts in memory and stores its counts about every FLUSH_SECONDS by one statement, in rows of its own, so
that no row is shared and no timer costs a statement. A process that is killed loses what it counted since: at most that
many seconds of counts, never a record. A row holds increments: a process of the same name adds to it.

`scheduler_minute` holds three kinds of rows, told apart by the seconds that they cover: a minute and process, an hour
of all processes (what `fold` makes of minutes), and, with 0 seconds, all that a process ever counted. Counters are read
from the last kind: folding and pruning do not touch it, so they never go back.
"""

import json
import logging
import multiprocessing.util
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from config.database.base import wait_at_most
from webtask_scheduler.scheduler.models import State
from webtask_scheduler.scheduler.queue.faults import is_away
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.telemetry.events import event

FLUSH_SECONDS = 5.0
# A process with slots stores its row this often though it has nothing to add: rows of others are taken for dead.
TOUCH_SECONDS = 60.0
# A row of all that a process counted is added to the row of all that are gone when it was not written for this long.
GONE_SECONDS = 3600.0
# Minutes and hosts of each process are kept for this long, and then folded into hours of all processes.
KEEP_MINUTES = timedelta(days=2)
# The busiest hosts of a flush get rows; so many of a process in an hour, and so many of all processes in a folded hour.
HOSTS_A_FLUSH = 200
HOSTS_AN_HOUR = 1000
# Stands for the hosts without a row. No host has a space in its name.
OTHER_HOSTS = "other hosts"
# The process of a row that stands for all of them.
EVERYBODY = ""
MINUTE, HOUR, EVER = 60, 3600, 0
# The end of a web process may take three seconds.
LAST_SECONDS = 2.0

# How an attempt ended: a success, or models.ErrorKind. Stored rows hold a count for each, in this order: append only.
OUTCOMES = (
    *("success", "status", "timeout", "dns", "connect", "tls", "connection", "protocol", "redirect", "url"),
    *("interrupted", "lost", "refused"),
)
_OUTCOME = {name: number for number, name in enumerate(OUTCOMES)}


@dataclass(slots=True)
class Counts:
    """What a process counted in a span of time. The fields are the columns of models.Minute."""

    # Histograms, and the sums of what they count, in seconds. Lateness is from the due time to the start of the call.
    first_late: list[int] = field(default_factory=histogram.empty)
    first_late_seconds: float = 0.0
    retry_late: list[int] = field(default_factory=histogram.empty)
    retry_late_seconds: float = 0.0
    durations: list[int] = field(default_factory=histogram.empty)
    duration_seconds: float = 0.0
    # From the due time to the claim, and to the message to a worker; 0 if it was claimed ahead, as it should be.
    claims: list[int] = field(default_factory=histogram.empty)
    claim_seconds: float = 0.0
    publishes: list[int] = field(default_factory=histogram.empty)
    publish_seconds: float = 0.0
    # Attempts, by OUTCOMES.
    outcomes: list[int] = field(default_factory=lambda: [0] * len(OUTCOMES))
    # Deliveries by their ends, and attempts that are followed by another.
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    missed: int = 0
    retried: int = 0
    # Timers made by requests, commands and code; callbacks are not counted.
    created: int = 0
    # Deliveries that a worker had no place for, and claims whose lease ran out.
    put_off: int = 0
    reclaimed: int = 0
    # Of a beat: for how long it led, and the most that it saw claimed and not started.
    led_seconds: float = 0.0
    window_most: int = 0

    def add(self, other: "Counts") -> None:
        for name in HISTOGRAMS:
            mine, theirs = getattr(self, name), getattr(other, name)
            # A row of an older release may have fewer.
            mine += [0] * (len(theirs) - len(mine))
            for number, count in enumerate(theirs):
                mine[number] += count
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.window_most = max(self.window_most, other.window_most)


HISTOGRAMS = ("first_late", "retry_late", "durations", "claims", "publishes", "outcomes")
SUMS = (
    *("first_late_seconds", "retry_late_seconds", "duration_seconds", "claim_seconds", "publish_seconds"),
    *("succeeded", "failed", "cancelled", "missed", "retried", "created", "put_off", "reclaimed", "led_seconds"),
)
MOST = ("window_most",)
_COLUMNS = (*HISTOGRAMS, *SUMS, *MOST)
_FLOATS = tuple(name for name in SUMS if name.endswith("_seconds"))
_ENDS = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
    State.MISSED: "missed",
    State.SCHEDULED: "retried",
}


@dataclass(slots=True)
class HostCounts:
    """What a process counted of one host in an hour. The fields are columns of models.HostHour."""

    # Attempts, and those that were no success.
    calls: int = 0
    failed: int = 0
    put_off: int = 0
    # Lateness of first attempts; durations of all.
    late: list[int] = field(default_factory=histogram.empty)
    durations: list[int] = field(default_factory=histogram.empty)

    def add(self, other: "HostCounts") -> None:
        self.calls += other.calls
        self.failed += other.failed
        self.put_off += other.put_off
        self.late = [a + b for a, b in zip(self.late, other.late, strict=True)]
        self.durations = [a + b for a, b in zip(self.durations, other.durations, strict=True)]


_HOST_HISTOGRAMS, _HOST_SUMS = ("late", "durations"), ("calls", "failed", "put_off")
_HOST_COLUMNS = (*_HOST_SUMS, *_HOST_HISTOGRAMS)


def _types(columns: Sequence[str]) -> str:
    kinds = {"late": "bigint[]", **dict.fromkeys(HISTOGRAMS, "bigint[]"), **dict.fromkeys(_FLOATS, "float8")}
    return ", ".join(f"{name} {kinds.get(name, 'bigint')}" for name in columns)


def _adding(arrays: Sequence[str], sums: Sequence[str], most: Sequence[str] = ()) -> str:
    """Return the assignments of an upsert that adds a row to the stored one."""
    added = [
        f"{name} = ARRAY(SELECT coalesce(mine, 0) + coalesce(theirs, 0)"  # noqa: S608 - a column's name
        f" FROM unnest(stored.{name}, excluded.{name}) WITH ORDINALITY AS pair (mine, theirs, position)"
        " ORDER BY position)"
        for name in arrays
    ]
    added += [f"{name} = stored.{name} + excluded.{name}" for name in sums]
    added += [f"{name} = greatest(stored.{name}, excluded.{name})" for name in most]
    return ", ".join(added)


_NAMES, _HOST_NAMES = ", ".join(_COLUMNS), ", ".join(_HOST_COLUMNS)
_ADD = _adding(HISTOGRAMS, SUMS, MOST)
_ADD_HOST = _adding(_HOST_HISTOGRAMS, _HOST_SUMS)

# Adds the counts of a process to its rows. A batch whose answer was lost is sent again; its id keeps it from being
# added twice. The commit waits for the disk, unlike that of records: a counter that goes back after a crash of the
# database looks like one that began again.
_FLUSH = f"""
WITH hosts AS (
  INSERT INTO scheduler_hosthour AS stored (hour, host, process, batch, {_HOST_NAMES})
  SELECT to_timestamp(at), host, %(process)s, %(batch)s, {_HOST_NAMES}
    FROM json_to_recordset(%(hosts)s::json) AS item (at float8, host text, {_types(_HOST_COLUMNS)})
  ON CONFLICT (hour, host, process) DO UPDATE SET batch = excluded.batch, {_ADD_HOST}
    WHERE stored.batch <> excluded.batch
)
INSERT INTO scheduler_minute AS stored (seconds, begins_at, process, batch, stored_at, slots, {_NAMES})
SELECT seconds, to_timestamp(at), %(process)s, %(batch)s, clock_timestamp(), %(slots)s, {_NAMES}
  FROM json_to_recordset(%(minutes)s::json) AS item (seconds int, at float8, {_types(_COLUMNS)})
ON CONFLICT (seconds, begins_at, process)
  DO UPDATE SET batch = excluded.batch, stored_at = excluded.stored_at, slots = excluded.slots, {_ADD}
  WHERE stored.batch <> excluded.batch
"""  # noqa: S608 - only constants are put in


def process_name() -> str:
    """Return this process's name in the tables of workers, beats and counts."""
    return f"{socket.gethostname()}:{os.getpid()}"[:100]


class Tally:
    """The counts of this process that are not stored yet. Any thread may count; `flush` stores."""

    def __init__(self) -> None:
        # A signal handler of beat may flush while its own thread counts.
        self._lock = threading.RLock()
        self._storing = threading.RLock()
        self._minutes: dict[int, Counts] = {}
        self._hosts: dict[tuple[int, str], HostCounts] = {}
        # The hosts that have a row in the hour that is counted last.
        self._known: tuple[int, set[str]] = (0, set())
        # A batch that was sent and not answered.
        self._batch: dict[str, Any] | None = None
        self._touched_at = -TOUCH_SECONDS
        # How many calls this process begins side by side; 0 for one that makes none.
        self.slots = 0
        self._flusher: _Flusher | None = None

    # What is counted

    def attempt(
        self,
        *,
        at: datetime,
        error: str,
        state: State,
        first: bool,
        late_seconds: float,
        duration_seconds: float,
        host: str,
    ) -> None:
        """Count an attempt that was recorded: when it was started, how it ended, and what came of its delivery."""
        second = int(at.timestamp())
        late, took = histogram.bucket_of(late_seconds), histogram.bucket_of(duration_seconds)
        end = _ENDS[state]
        with self._lock:
            counts = self._minute(second)
            if first:
                counts.first_late[late] += 1
                counts.first_late_seconds += late_seconds
            else:
                counts.retry_late[late] += 1
                counts.retry_late_seconds += late_seconds
            counts.durations[took] += 1
            counts.duration_seconds += duration_seconds
            counts.outcomes[_OUTCOME[error or "success"]] += 1
            setattr(counts, end, getattr(counts, end) + 1)
            of_host = self._host(second, host)
            of_host.calls += 1
            of_host.failed += bool(error)
            if first:
                of_host.late[late] += 1
            of_host.durations[took] += 1

    def missed(self, count: int) -> None:
        with self._lock:
            self._minute().missed += count

    def lost(self, ended: Sequence[State]) -> None:
        """Count attempts whose process vanished, by what came of their deliveries."""
        with self._lock:
            counts = self._minute()
            counts.outcomes[_OUTCOME["lost"]] += len(ended)
            for state in ended:
                setattr(counts, _ENDS[state], getattr(counts, _ENDS[state]) + 1)

    def put_off(self, host: str) -> None:
        """Count a delivery that this process had no place for."""
        with self._lock:
            second = int(time.time())
            self._minute(second).put_off += 1
            self._host(second, host).put_off += 1

    def created(self, count: int) -> None:
        with self._lock:
            self._minute().created += count
            if self._flusher is not None:
                self._flusher.wake()

    def claimed(self, seconds: Sequence[float], *, window: int) -> None:
        """Count claims by the seconds since their due times, and note how many are claimed and not started by now."""
        with self._lock:
            counts = self._minute()
            counts.window_most = max(counts.window_most, window)
            for past in seconds:
                counts.claims[histogram.bucket_of(past)] += 1
                counts.claim_seconds += max(0.0, past)

    def published(self, seconds: Sequence[float]) -> None:
        """Count messages to workers, by the seconds since the due times of their deliveries."""
        with self._lock:
            counts = self._minute()
            for past in seconds:
                counts.publishes[histogram.bucket_of(past)] += 1
                counts.publish_seconds += max(0.0, past)

    def reclaimed(self, count: int) -> None:
        with self._lock:
            self._minute().reclaimed += count

    def led(self, seconds: float) -> None:
        with self._lock:
            self._minute().led_seconds += seconds

    def _minute(self, second: int | None = None) -> Counts:
        minute = int(time.time() if second is None else second) // MINUTE
        counts = self._minutes.get(minute)
        if counts is None:
            counts = self._minutes[minute] = Counts()
        return counts

    def _host(self, second: int, host: str) -> HostCounts:
        # The user and password of a URL belong to no table that others read.
        key = second // HOUR, host.rpartition("@")[2]
        counts = self._hosts.get(key)
        if counts is None:
            counts = self._hosts[key] = HostCounts()
        return counts

    # How it is stored

    def flush(self) -> None:
        """Store what was counted since the last time, if anything was; one statement.

        Raises an error of the database that is away; the counts are kept for the next time.
        """
        with self._storing:
            if self._batch is None:
                self._batch = self._cut()
            if self._batch is None:
                return
            try:
                with connection.cursor() as cursor:
                    cursor.execute(_FLUSH, self._batch)
            except Exception as error:
                if is_away(error):
                    raise
                # It would be refused again and again.
                event("counts_refused", level=logging.ERROR, exc_info=True)
            self._batch = None

    def keep(self) -> None:
        """Have a thread of this process store what is counted from now on, and what is left at its orderly end.

        For a process without a loop of its own that calls `flush`, such as a web process.
        """
        self._flusher = _Flusher(self)

    def forget(self) -> None:
        """Drop what is not stored; for tests."""
        with self._storing, self._lock:
            self._minutes, self._hosts, self._batch, self._known = {}, {}, None, (0, set())

    def _cut(self) -> dict[str, Any] | None:
        """Return the arguments of `_FLUSH` for what was counted, and begin anew; None if there is nothing to store."""
        with self._lock:
            minutes, self._minutes = self._minutes, {}
            hosts, self._hosts = self._hosts, {}
        now = time.monotonic()
        if not minutes and not hosts and not (self.slots and now >= self._touched_at + TOUCH_SECONDS):
            return None
        self._touched_at = now
        ever = Counts()
        for counts in minutes.values():
            ever.add(counts)
        rows = [{"seconds": MINUTE, "at": minute * MINUTE} | _row(counts) for minute, counts in minutes.items()]
        rows.append({"seconds": EVER, "at": 0} | _row(ever))
        return {
            "process": process_name(),
            "batch": uuid.uuid4(),
            "slots": self.slots,
            "minutes": json.dumps(rows),
            "hosts": json.dumps(self._host_rows(hosts)),
        }

    def _host_rows(self, hosts: dict[tuple[int, str], HostCounts]) -> list[dict[str, Any]]:
        """Return rows of the busiest hosts, and one for the others of each hour."""
        rows: list[dict[str, Any]] = []
        others: dict[int, HostCounts] = {}
        busiest = sorted(hosts.items(), key=lambda item: item[1].calls + item[1].put_off, reverse=True)
        for (hour, host), counts in busiest:
            if hour > self._known[0]:
                self._known = (hour, set())
            known = self._known[1]
            # An hour that is over has rows of few flushes only; it is not counted any more.
            if len(rows) < HOSTS_A_FLUSH and (host in known or len(known) < HOSTS_AN_HOUR):
                known.add(host)
                rows.append({"at": hour * HOUR, "host": host} | _row(counts))
            elif hour in others:
                others[hour].add(counts)
            else:
                others[hour] = counts
        return rows + [{"at": hour * HOUR, "host": OTHER_HOSTS} | _row(counts) for hour, counts in others.items()]


def _row(counts: Counts | HostCounts) -> dict[str, Any]:
    """Return the columns of counts. `dataclasses.asdict` copies every number, which takes several times as long."""
    return {name: getattr(counts, name) for name in counts.__slots__}


class _Flusher:
    """A thread that stores the counts of a process, FLUSH_SECONDS after the first that is new.

    It is started by the first count: a process may be forked after it was set up. It keeps no connection while nothing
    happens.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        if not self._wanted.is_set():
            self._wanted.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="counts", daemon=True)
            self._thread.start()
            # Runs at the end of a process of multiprocessing too, where `atexit` does not.
            multiprocessing.util.Finalize(None, self._last, exitpriority=10)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            time.sleep(FLUSH_SECONDS)
            try:
                self._tally.flush()
            except Exception as error:
                # The next time tries again; requests log that the database is away.
                self._wanted.set()
                if not is_away(error):
                    event("counts_not_stored", level=logging.ERROR, exc_info=True)
            finally:
                connection.close()

    def _last(self) -> None:
        try:
            with wait_at_most(LAST_SECONDS):
                self._tally.flush()
        except Exception as error:
            event("counts_lost", level=logging.WARNING, error=" ".join(str(error).split()))
        finally:
            connection.close()


# One for each process.
tally = Tally()


def keep() -> None:
    """Have this process store what it counts; see `Tally.keep`."""
    tally.keep()


# Reading


def ever() -> Counts:
    """Return all that was ever counted by all processes. Raises DatabaseError."""
    total = Counts()
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_NAMES} FROM scheduler_minute WHERE seconds = {EVER}")  # noqa: S608
        for row in cursor.fetchall():
            total.add(Counts(*_in_order(row)))
    return total


def _in_order(row: Sequence[Any]) -> list[Any]:
    """Return the values of `_COLUMNS` in the order of the fields of Counts."""
    by_name = dict(zip(_COLUMNS, row, strict=True))
    return [by_name[name] for name in Counts.__dataclass_fields__]


# Folding: called by upkeep


def _summed(arrays: Sequence[str], rows: str, where: str = "") -> str:
    return ", ".join(
        f"ARRAY(SELECT sum(count)::bigint FROM {rows} one, unnest(one.{name}) WITH ORDINALITY AS each (count, position)"  # noqa: S608
        f" {where} GROUP BY position ORDER BY position)"
        for name in arrays
    )


_TOGETHER = ", ".join(
    [
        _summed(HISTOGRAMS, "gone"),
        *(f"(SELECT sum({name}) FROM gone)" for name in SUMS),  # noqa: S608
        *(f"(SELECT max({name}) FROM gone)" for name in MOST),  # noqa: S608
    ]
)
# The beginning of the first hour that is not old enough to be folded.
_UNTIL = "date_trunc('hour', statement_timestamp() - make_interval(secs => %(age)s), 'UTC')"

# One hour: the oldest that has minutes.
_FOLD = f"""
WITH oldest AS (
  SELECT date_trunc('hour', min(begins_at), 'UTC') AS hour FROM scheduler_minute
   WHERE seconds = {MINUTE} AND begins_at < {_UNTIL}
),
gone AS (
  DELETE FROM scheduler_minute USING oldest
   WHERE seconds = {MINUTE} AND begins_at >= oldest.hour AND begins_at < oldest.hour + interval '1 hour'
  RETURNING scheduler_minute.*
)
INSERT INTO scheduler_minute AS stored (seconds, begins_at, process, batch, stored_at, slots, {_NAMES})
SELECT {HOUR}, hour, '{EVERYBODY}', gen_random_uuid(), clock_timestamp(), 0, {_TOGETHER}
  FROM oldest WHERE EXISTS (SELECT FROM gone)
ON CONFLICT (seconds, begins_at, process) DO UPDATE SET stored_at = excluded.stored_at, {_ADD}
"""  # noqa: S608 - only constants are put in

_FOLD_HOSTS = f"""
WITH oldest AS (
  SELECT min(hour) AS hour FROM scheduler_hosthour
   WHERE process <> '{EVERYBODY}' AND hour < {_UNTIL}
),
gone AS (
  DELETE FROM scheduler_hosthour USING oldest
   WHERE scheduler_hosthour.hour = oldest.hour AND process <> '{EVERYBODY}' RETURNING scheduler_hosthour.*
),
busy AS (
  SELECT host FROM gone WHERE host <> '{OTHER_HOSTS}' GROUP BY host
   ORDER BY sum(calls + put_off) DESC, host LIMIT {HOSTS_A_FLUSH}
),
named AS (
  SELECT gone.hour, coalesce(busy.host, '{OTHER_HOSTS}') AS host, {", ".join(f"gone.{name}" for name in _HOST_COLUMNS)}
    FROM gone LEFT JOIN busy ON busy.host = gone.host
)
INSERT INTO scheduler_hosthour AS stored (hour, host, process, batch, {_HOST_NAMES})
SELECT hour, host, '{EVERYBODY}', gen_random_uuid(), {", ".join(f"sum({name})" for name in _HOST_SUMS)},
       {_summed(_HOST_HISTOGRAMS, "named", "WHERE one.host = named.host")}
  FROM named GROUP BY hour, host
ON CONFLICT (hour, host, process) DO UPDATE SET {_ADD_HOST}
"""  # noqa: S608 - only constants are put in

# Adds what processes that are gone ever counted together, in one row.
_MERGE = f"""
WITH gone AS (
  DELETE FROM scheduler_minute
   WHERE seconds = {EVER} AND process <> '{EVERYBODY}'
     AND stored_at < clock_timestamp() - make_interval(secs => {GONE_SECONDS}) RETURNING *
)
INSERT INTO scheduler_minute AS stored (seconds, begins_at, process, batch, stored_at, slots, {_NAMES})
SELECT {EVER}, 'epoch', '{EVERYBODY}', gen_random_uuid(), clock_timestamp(), 0, {_TOGETHER}
 WHERE EXISTS (SELECT FROM gone)
ON CONFLICT (seconds, begins_at, process) DO UPDATE SET stored_at = excluded.stored_at, {_ADD}
"""  # noqa: S608 - only constants are put in

_PRUNE = f"""
WITH hours AS (
  DELETE FROM scheduler_minute
   WHERE seconds = {HOUR} AND begins_at < statement_timestamp() - make_interval(secs => %(age)s) RETURNING true
),
hosts AS (
  DELETE FROM scheduler_hosthour WHERE hour < statement_timestamp() - make_interval(secs => %(age)s) RETURNING true
)
SELECT (SELECT count(*) FROM hours) + (SELECT count(*) FROM hosts)
"""  # noqa: S608 - only constants are put in


def fold() -> int:
    """Fold the oldest hour of minutes and of hosts that is old enough, and merge gone processes; return how many rows.

    Readers see either what was there or what became of it. Raises DatabaseError.
    """
    with connection.cursor() as cursor:
        cursor.execute(_MERGE)
        folded = 0
        for statement in (_FOLD, _FOLD_HOSTS):
            cursor.execute(statement, {"age": KEEP_MINUTES.total_seconds()})
            folded += cursor.rowcount
    return folded


def prune(*, older_than: timedelta) -> int:
    """Delete hours that are older than this; return how many rows. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_PRUNE, {"age": older_than.total_seconds()})
        return int(cursor.fetchone()[0])
