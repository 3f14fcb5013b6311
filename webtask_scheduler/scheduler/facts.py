"""Gathers the service's present state: whether beats and workers are at work, what is stopped, how much waits.

`/readyz`, a timer's `reason`, `manage.py calls status` and the admin's banner use the same facts, so that they never
disagree. Reading them is one statement on indexes; `gather` keeps the answer for a second in each process.
"""

import functools
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils.formats import number_format
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext

from webtask_scheduler import vault
from webtask_scheduler.broker import redis_client
from webtask_scheduler.scheduler.queue.leases import ASYNC_COMMIT
from webtask_scheduler.wording import Sentence, sentence, translated

# A beat or a worker that was not seen for this long counts as gone. They write once a second.
SEEN_SECONDS = 5.0
# A worker's thread that has not moved for this long, while its process goes on writing, is stuck.
STUCK_SECONDS = 10.0
# The most that facts and the broker's state may be old: every GET may ask for them, and an absent broker costs
# BROKER_TIMEOUT_SECONDS to find out.
FRESH_SECONDS = 1.0
BROKER_AWAY_SECONDS = 5.0
BROKER_TIMEOUT_SECONDS = 1.5
# Counts stop at this number.
COUNT_MOST = 10_000
WORKERS_MOST = 200
# As hosts.PUT_OFF_SECONDS, and a little more.
PUT_OFF_MOST_SECONDS = 16.0
# Waiting for a worker for longer than this is worth a word.
BEHIND_SECONDS = 2.0
# Waiting for longer than this, for whatever cause, is worth a banner on each page.
LATE_SECONDS = 60.0
# Which migrations are missing is looked up at most this often: it takes some tens of milliseconds.
MIGRATIONS_SECONDS = 10.0
# Due for longer than this is backlog, as claims.FRESH_SECONDS has it.
BACKLOG_SECONDS = 5.0

CALLS = "calls"
UPKEEP = "upkeep"

# The process's own row is not deleted: one statement cannot delete and update it.
_NOTE = f"""
WITH {ASYNC_COMMIT},
gone AS (DELETE FROM scheduler_worker WHERE seen_at < clock_timestamp() - interval '1 hour' AND name <> %(name)s)
INSERT INTO scheduler_worker (name, kind, seen_at, starter_at, ledger_at, held, running)
SELECT %(name)s, %(kind)s, clock_timestamp(), clock_timestamp() - make_interval(secs => %(starter)s),
       clock_timestamp() - make_interval(secs => %(ledger)s), %(held)s, %(running)s FROM quick
ON CONFLICT (name, kind) DO UPDATE SET seen_at = excluded.seen_at, starter_at = excluded.starter_at,
  ledger_at = excluded.ledger_at, held = excluded.held, running = excluded.running
"""  # noqa: S608 - only constants are put in

_LIVE = """
SELECT count(*) FROM scheduler_worker
 WHERE kind = %s AND seen_at >= clock_timestamp() - make_interval(secs => %s)
"""
_FORGET = "DELETE FROM scheduler_worker WHERE name = %s AND kind = %s"

# Bounded counts, each along an index: delivery_due_idx, delivery_lease_idx (few are claimed), delivery_held_idx.
_GATHER = """
SELECT (SELECT extract(epoch FROM clock_timestamp() - max(seen_at))::float8 FROM scheduler_beat) AS beat_seconds,
       (SELECT coalesce(json_agg(worker), '[]')
          FROM (SELECT name, kind, held, running,
                       extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seen_seconds,
                       extract(epoch FROM seen_at - starter_at)::float8 AS starter_seconds,
                       extract(epoch FROM seen_at - ledger_at)::float8 AS ledger_seconds
                  FROM scheduler_worker ORDER BY seen_at DESC LIMIT %(workers)s) worker) AS workers,
       (SELECT coalesce(array_agg(host ORDER BY host), '{}') FROM scheduler_callstop) AS stops,
       (SELECT coalesce(array_agg(id ORDER BY noted_at, id), '{}') FROM scheduler_encryptionkey) AS keys,
       (SELECT count(*)
          FROM (SELECT FROM scheduler_delivery
                 WHERE state = 'scheduled' AND NOT extra AND next_attempt_at <= statement_timestamp()
                 LIMIT %(most)s) due) AS overdue,
       (SELECT extract(epoch FROM clock_timestamp() - min(next_attempt_at))::float8 FROM scheduler_delivery
         WHERE state = 'scheduled' AND NOT extra AND next_attempt_at <= statement_timestamp()) AS overdue_seconds,
       (SELECT count(*) FROM (SELECT FROM scheduler_delivery WHERE state = 'held' LIMIT %(most)s) held) AS held,
       claimed.count AS unstarted, claimed.seconds AS unstarted_seconds,
       put_off.count AS put_off, put_off.seconds AS put_off_seconds
  FROM (SELECT count(*) AS count, extract(epoch FROM clock_timestamp() - min(next_attempt_at))::float8 AS seconds
          FROM (SELECT next_attempt_at FROM scheduler_delivery WHERE state = 'claimed' LIMIT %(most)s) leased
         WHERE next_attempt_at <= statement_timestamp()) claimed,
       (SELECT count(*) AS count, extract(epoch FROM clock_timestamp() - min(due_at))::float8 AS seconds
          FROM (SELECT due_at, attempts, attempts_before, replayed_at FROM scheduler_delivery
                 WHERE state = 'scheduled' AND NOT extra AND next_attempt_at > statement_timestamp()
                   AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(soon)s)
                 ORDER BY next_attempt_at LIMIT %(most)s) soon
         -- Not one that failed, and waits for its next attempt, nor a replay that is spread.
         WHERE attempts = attempts_before AND replayed_at IS NULL
           AND due_at < statement_timestamp() - make_interval(secs => %(behind)s)) put_off
"""

# What is counted, each with an order that an index gives, so that a count that stops early reads no other rows:
# delivery_due_idx, delivery_lease_idx, delivery_held_idx, delivery_past_flow_idx.
_WAITING = "state = 'scheduled' AND NOT extra"
_COUNTED = {
    "waiting": (_WAITING, "next_attempt_at"),
    "due": (f"{_WAITING} AND next_attempt_at <= statement_timestamp()", "next_attempt_at"),
    "backlog": (
        f"{_WAITING} AND next_attempt_at <= statement_timestamp() - make_interval(secs => %(backlog)s)",
        "next_attempt_at",
    ),
    "claimed": ("state = 'claimed'", "lease_expires_at"),
    "running": ("state = 'running'", "lease_expires_at"),
    "held": ("state = 'held'", "id"),
    "paused": ("state = 'paused'", "due_at"),
    "dead": ("state = 'failed'", "due_at"),
}
_COUNTS = ", ".join(
    f"(SELECT count(*) FROM (SELECT FROM scheduler_delivery WHERE {where} ORDER BY {order} LIMIT %(most)s) {name})"  # noqa: S608
    f" AS {name}"
    for name, (where, order) in _COUNTED.items()
)
# The low half of a flow stands for its host.
_NUMBERS = f"""
SELECT {_COUNTS},
       (SELECT count(DISTINCT flow & 4294967295)
          FROM (SELECT flow, due_at, attempts, attempts_before, replayed_at FROM scheduler_delivery
                 WHERE state = 'scheduled' AND NOT extra AND next_attempt_at > statement_timestamp()
                   AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(soon)s)
                 ORDER BY next_attempt_at LIMIT %(most)s) soon
         WHERE attempts = attempts_before AND replayed_at IS NULL
           AND due_at < statement_timestamp() - make_interval(secs => %(behind)s)) AS put_off_hosts,
       (SELECT count(*) FROM scheduler_beat
         WHERE seen_at >= clock_timestamp() - make_interval(secs => %(seen)s)) AS beats,
       (SELECT name FROM scheduler_leader WHERE expires_at > clock_timestamp()) AS leader,
       (SELECT coalesce(sum(slots), 0) FROM scheduler_worker worker
          JOIN scheduler_minute ever ON ever.seconds = 0 AND ever.process = worker.name
         WHERE worker.kind = 'calls'
           AND worker.seen_at >= clock_timestamp() - make_interval(secs => %(seen)s))::int AS slots
"""  # noqa: S608 - only constants are put in


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many deliveries are in which state, and how many beats and slots for calls there are."""

    # All that are scheduled, with those due; those due; those due for longer than BACKLOG_SECONDS.
    waiting: int
    due: int
    backlog: int
    claimed: int
    running: int
    held: int
    paused: int
    # Failed deliveries that are kept.
    dead: int
    # Hosts with deliveries that a worker put off for want of a place.
    put_off_hosts: int
    beats: int
    # The beat that leads; None if none does.
    leader: str | None
    # Calls that the live workers begin side by side.
    slots: int
    # Which of the counts are the planner's estimates, being COUNT_MOST or more.
    estimated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process as it last reported itself; times in seconds."""

    name: str
    kind: str
    held: int
    running: int
    seen_seconds: float
    starter_seconds: float
    ledger_seconds: float

    @property
    def is_live(self) -> bool:
        return self.seen_seconds <= SEEN_SECONDS

    @property
    def trouble(self) -> str:
        """Return which thread does not move in a live process; empty if all move."""
        starter = _("worker %(name)s: its starter has not moved for %(seconds)s s")
        ledger = _("worker %(name)s: its ledger has not moved for %(seconds)s s")
        for text, seconds in ((starter, self.starter_seconds), (ledger, self.ledger_seconds)):
            if self.is_live and seconds > STUCK_SECONDS:
                return text % {"name": self.name, "seconds": f"{seconds + self.seen_seconds:.0f}"}
        return ""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that the database holds. Counts end at COUNT_MOST."""

    # Seconds since a beat was last seen; None if no beat was ever seen.
    beat_seconds: float | None
    workers: tuple[Worker, ...]
    # Hosts to which calls are stopped; an empty host means all.
    stops: tuple[str, ...]
    # Deliveries due and not claimed, and how long the oldest of them is due.
    overdue: int
    overdue_seconds: float
    held: int
    # Deliveries claimed, due and not started, and how long the oldest of them is due.
    unstarted: int
    unstarted_seconds: float
    # Past its moment and put off by a worker that had no place for it; and how long the oldest is past its moment.
    put_off: int
    put_off_seconds: float
    # The ids of the keys with which stored values may be encrypted.
    keys: tuple[str, ...] = ()

    @property
    def late(self) -> int:
        """How many are past their moment and not being called, wherever they are."""
        return min(COUNT_MOST, self.overdue + self.unstarted + self.put_off)

    @property
    def late_seconds(self) -> float:
        """How long the oldest of them is past its moment."""
        return max(self.overdue_seconds, self.unstarted_seconds, self.put_off_seconds)

    @property
    def all_stopped(self) -> bool:
        return "" in self.stops

    @property
    def has_live_worker(self) -> bool:
        return any(worker.is_live for worker in self._of(CALLS))

    @property
    def beat_trouble(self) -> str:
        """Return what is wrong with beats, in lower case; empty if one is at work."""
        if self.beat_seconds is None:
            return _("no beat was ever seen")
        if self.beat_seconds <= SEEN_SECONDS:
            return ""
        return _("no beat was seen for %(seconds)s s") % {"seconds": f"{self.beat_seconds:.0f}"}

    @property
    def worker_trouble(self) -> str:
        """Return what is wrong with workers that make calls, in lower case; empty if all is well."""
        return self._absent(CALLS) or "; ".join(worker.trouble for worker in self._of(CALLS) if worker.trouble)

    @property
    def behind(self) -> str:
        """Return how much waits for a worker, in words; empty if it is too little to report."""
        if self.unstarted_seconds <= BEHIND_SECONDS:
            return ""
        values = {"count": shown_number(self.unstarted), "seconds": f"{self.unstarted_seconds:.0f}"}
        if self.unstarted >= COUNT_MOST:
            text = _("%(count)s deliveries or more wait for a worker, the oldest for %(seconds)s s.")
        else:
            text = ngettext(
                "%(count)s delivery waits for a worker, the oldest for %(seconds)s s.",
                "%(count)s deliveries wait for a worker, the oldest for %(seconds)s s.",
                self.unstarted,
            )
        return text % values

    @property
    def keys_trouble(self) -> str:
        """Return which encryption keys are missing here, in lower case; empty if none is."""
        missing = vault.missing_keys(self.keys)
        if not missing:
            return ""
        text = _("WEBTASK_ENCRYPTION_KEYS lacks keys with which stored values are encrypted: %(keys)s")
        return text % {"keys": ", ".join(missing)}

    @property
    def upkeep_trouble(self) -> str:
        """Return what is wrong with upkeep, on which no call depends; empty if there was never a worker for it."""
        if not self._of(UPKEEP):
            return ""
        return self._absent(UPKEEP) or "; ".join(worker.trouble for worker in self._of(UPKEEP) if worker.trouble)

    def cause(self, host: str, *, claimed: bool = False) -> str:
        """Return in a sentence why a due timer is not being called; empty if nothing prevents it."""
        return (
            self._stopped(host)
            or (self._awaited_beat() if not claimed else "")
            or self._awaited_worker()
            or self._awaited_broker()
        )

    def _stopped(self, host: str) -> str:
        if self.all_stopped:
            return _("All calls are stopped by an operator; it is called when they are resumed.")
        if host in self.stops:
            text = _("Calls to %(host)s are stopped by an operator; it is called when they are resumed.")
            return text % {"host": host}
        return ""

    def _awaited_broker(self) -> str:
        trouble = broker_trouble()
        return _("%(trouble)s; it is called when it does.") % {"trouble": capfirst(trouble)} if trouble else ""

    def _awaited_beat(self) -> str:
        if not self.beat_trouble:
            return ""
        if self.beat_seconds is None:
            return _("No beat has been at work yet; it is called when one is.")
        text = _("No beat has been at work for %(seconds)s s; it is called when one is back.")
        return text % {"seconds": f"{self.beat_seconds:.0f}"}

    def _awaited_worker(self) -> str:
        seen = [worker.seen_seconds for worker in self._of(CALLS)]
        live = [worker for worker in self._of(CALLS) if worker.is_live]
        if not seen:
            return _("No worker has been at work yet; it is called when one is.")
        if not live:
            text = _("No worker has been at work for %(seconds)s s; it is called when one is back.")
            return text % {"seconds": f"{min(seen):.0f}"}
        if all(worker.trouble for worker in live):
            text = _("No worker starts calls (%(trouble)s); it is called when one does.")
            return text % {"trouble": live[0].trouble}
        return ""

    def _of(self, kind: str) -> list[Worker]:
        return [worker for worker in self.workers if worker.kind == kind]

    def _absent(self, kind: str) -> str:
        seen = [worker.seen_seconds for worker in self._of(kind)]
        if not seen:
            return _("no worker was ever seen") if kind == CALLS else _("no upkeep worker was ever seen")
        if min(seen) <= SEEN_SECONDS:
            return ""
        calls, upkeep = _("no worker was seen for %(seconds)s s"), _("no upkeep worker was seen for %(seconds)s s")
        return (calls if kind == CALLS else upkeep) % {"seconds": f"{min(seen):.0f}"}


def note_worker(
    *,
    name: str,
    kind: str,
    starter_idle_seconds: float,
    held: int,
    running: int,
    ledger_idle_seconds: float = 0.0,
) -> None:
    """Store that a worker process is at work, and how long ago its threads last completed a turn.

    Called once a second. Raises DatabaseError.
    """
    arguments: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "starter": starter_idle_seconds,
        "ledger": ledger_idle_seconds,
        "held": held,
        "running": running,
    }
    with connection.cursor() as cursor:
        cursor.execute(_NOTE, arguments)


def live_workers() -> int:
    """Return how many worker processes make calls now. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_LIVE, [CALLS, SEEN_SECONDS])
        return int(cursor.fetchone()[0])


def forget_worker(*, name: str, kind: str) -> None:
    """Delete the row of a worker that ends in an orderly way. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_FORGET, [name, kind])


def note_key() -> None:
    """Store which key this process encrypts with, so that a later lack of it is reported. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduler_encryptionkey (id, noted_at) VALUES (%s, clock_timestamp()) ON CONFLICT DO NOTHING",
            [vault.newest_key()],
        )


_gathered: tuple[float, Facts] | None = None
_broker: tuple[float, Sentence] | None = None


def gather(*, at_once: bool = False) -> Facts:
    """Return the facts, at most FRESH_SECONDS old, or with `at_once` read now. Raises DatabaseError."""
    global _gathered  # noqa: PLW0603 - one set of facts a process is the point
    now = time.monotonic()
    if _gathered is None or at_once or now - _gathered[0] >= FRESH_SECONDS:
        bounds: dict[str, float] = {"most": COUNT_MOST, "workers": WORKERS_MOST}
        bounds |= {"soon": PUT_OFF_MOST_SECONDS, "behind": BEHIND_SECONDS}
        with connection.cursor() as cursor:
            cursor.execute(_GATHER, bounds)
            names = [column.name for column in cursor.description]
            row = dict(zip(names, cursor.fetchone(), strict=True))
        row["workers"] = tuple(Worker(**worker) for worker in row["workers"])
        row["stops"], row["keys"] = tuple(row["stops"]), tuple(row["keys"])
        for name in ("overdue_seconds", "unstarted_seconds", "put_off_seconds"):
            row[name] = max(0.0, row[name] or 0.0)
        _gathered = now, Facts(**row)
    return _gathered[1]


def count() -> Numbers:
    """Return how many there are of each, read now. Raises DatabaseError.

    It costs the same with a million rows: counts stop at COUNT_MOST, and beyond it the planner is asked.
    """
    bounds: dict[str, float] = {"most": COUNT_MOST, "soon": PUT_OFF_MOST_SECONDS, "behind": BEHIND_SECONDS}
    bounds |= {"seen": SEEN_SECONDS, "backlog": BACKLOG_SECONDS}
    with connection.cursor() as cursor:
        cursor.execute(_NUMBERS, bounds)
        names = [column.name for column in cursor.description]
        row = dict(zip(names, cursor.fetchone(), strict=True))
        estimated = frozenset(name for name in _COUNTED if row[name] >= COUNT_MOST)
        for name in estimated:
            cursor.execute(f"EXPLAIN (FORMAT JSON) SELECT FROM scheduler_delivery WHERE {_COUNTED[name][0]}", bounds)
            row[name] = max(COUNT_MOST, int(cursor.fetchone()[0][0]["Plan"]["Plan Rows"]))
    return Numbers(**row, estimated=estimated)


def broker_trouble(*, at_once: bool = False) -> str:
    """Return what is wrong with the broker, in lower case; empty if it takes messages."""
    global _broker  # noqa: PLW0603 - as above
    now = time.monotonic()
    if _broker is not None and not at_once:
        known_at, trouble = _broker
        if now - known_at < (BROKER_AWAY_SECONDS if trouble else FRESH_SECONDS):
            return translated(trouble)
    trouble = sentence("")
    try:
        # A full broker, or a replica, answers a ping and refuses a message.
        _broker_client().set("webtask_scheduler:check", "", px=1000)
    except (redis.ConnectionError, redis.TimeoutError):
        trouble = sentence(gettext_noop("the broker does not answer"))
    except redis.RedisError as error:
        trouble = sentence(gettext_noop("the broker does not take messages (%(error)s)"), error=error)
    _broker = time.monotonic(), trouble
    return translated(trouble)


def forget() -> None:
    """Drop the gathered facts and the connection to the broker."""
    global _gathered, _broker  # noqa: PLW0603 - as above
    _gathered = _broker = None
    _broker_client.cache_clear()


@functools.cache
def _broker_client() -> redis.Redis:
    return redis_client(timeout_seconds=BROKER_TIMEOUT_SECONDS)


_migrations: tuple[float, bool] | None = None


def is_migrated(*, at_once: bool = False) -> bool:
    """Return whether every migration is applied. Once true, it stays true for this process. Raises DatabaseError."""
    global _migrations  # noqa: PLW0603 - looking is slow, and the answer does not change back
    now = time.monotonic()
    if _migrations is None or (not _migrations[1] and (at_once or now - _migrations[0] >= MIGRATIONS_SECONDS)):
        executor = MigrationExecutor(connection)
        _migrations = now, not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _migrations[1]


class Trouble(NamedTuple):
    """A present problem: what it is about, in a word for programs, and a sentence."""

    about: str
    text: str


def troubles() -> list[Trouble]:
    """Return each present problem that an operator should know; empty if all is well. Raises DatabaseError."""
    found = gather()
    said: list[Trouble] = []
    if not is_migrated():
        text = _("The database lacks migrations of this version: run manage.py migrate.")
        said.append(Trouble("migrations", text))
    if found.stops:
        said.append(Trouble("stops", _stops_said(found)))
    absent = [found.beat_trouble, found.worker_trouble, broker_trouble()]
    if any(absent):
        text = _("Timers are not called as they should be: %(troubles)s.")
        said.append(Trouble("processes", text % {"troubles": "; ".join(filter(None, absent))}))
    # While all calls are stopped, all wait, and that is said above.
    if found.late_seconds > LATE_SECONDS and not found.all_stopped:
        said.append(Trouble("late", late_said(found)))
    if found.keys_trouble:
        text = _("Some timers cannot be called: %(trouble)s.")
        said.append(Trouble("keys", text % {"trouble": found.keys_trouble}))
    if found.upkeep_trouble:
        text = _("Bulk operations, pruning and edits by other programs wait: %(trouble)s.")
        said.append(Trouble("processes", text % {"trouble": found.upkeep_trouble}))
    return said


def warnings() -> list[str]:
    """Return the sentences of `troubles`. Raises DatabaseError."""
    return [trouble.text for trouble in troubles()]


def late_said(found: Facts) -> str:
    """Return in a sentence how many timers are past their moment, and the oldest of them for how long."""
    text = ngettext(
        "Late: %(count)s due timer waits, for %(seconds)s s.",
        "Late: %(count)s due timers wait, the oldest for %(seconds)s s.",
        found.late,
    )
    return text % {"count": shown_number(found.late), "seconds": f"{found.late_seconds:.0f}"}


def waiting_for_stops(found: Facts) -> int:
    """Return how many deliveries wait because calls are stopped.

    While all are stopped nothing is claimed, so overdue deliveries stay scheduled and count too.
    """
    return min(COUNT_MOST, found.held + (found.overdue if found.all_stopped else 0))


def waiting_said(found: Facts) -> str:
    """Return in words how many deliveries wait because calls are stopped."""
    waiting = waiting_for_stops(found)
    if waiting >= COUNT_MOST:
        text = _("%(count)s deliveries or more wait for calls to be resumed")
    else:
        text = ngettext(
            "%(count)s delivery waits for calls to be resumed",
            "%(count)s deliveries wait for calls to be resumed",
            waiting,
        )
    return text % {"count": shown_number(waiting)}


def shown_number(number: int) -> str:
    """Return a number as the reader's language groups it."""
    return number_format(number, use_l10n=True, force_grouping=True)


def _stops_said(found: Facts, *, most: int = 3) -> str:
    waiting, more = waiting_said(found), len(found.stops) - most
    if found.all_stopped:
        return _("All calls are stopped; %(waiting)s.") % {"waiting": waiting}
    values = {"hosts": ", ".join(found.stops[:most]), "waiting": waiting, "more": more}
    if more <= 0:
        return _("Calls to %(hosts)s are stopped; %(waiting)s.") % values
    text = ngettext(
        "Calls to %(hosts)s and %(more)s other host are stopped; %(waiting)s.",
        "Calls to %(hosts)s and %(more)s other hosts are stopped; %(waiting)s.",
        more,
    )
    return text % values
