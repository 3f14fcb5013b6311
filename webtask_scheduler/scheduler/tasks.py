"""The Celery tasks: deliver a chunk, run one timer's PeriodicTask, apply foreign edits, and upkeep.

Deliveries go to a worker's callers, and the task does not wait for them. Upkeep and bulk operations take long, so they
have a queue (see CELERY_TASK_ROUTES) and a worker process of their own and take nothing from deliveries.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from celery import shared_task, signals
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection

from webtask_scheduler import __version__
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.delivery.pool import CallPool, waiting_room
from webtask_scheduler.scheduler.models import TASK_NAME, BulkOperation
from webtask_scheduler.scheduler.outgoing.client import Client, raise_descriptor_limit
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.queue.claims import call_stops, claim_timer
from webtask_scheduler.scheduler.services import notifying, retention

# How many rows one step of the sweep looks at, and the pause after it: a fifth of one core while it runs.
SWEEP_ROWS = 2000
SWEEP_PAUSE_SECONDS = 0.05
# One run of pruning; the next goes on where it ended.
PRUNE_SECONDS = 50.0
# One turn of notifications; the next goes on where it ended.
NOTIFY_SECONDS = 20.0
# One run of bulk operations, and the pause after each step: running timers come first.
BULK_SECONDS = 30.0
# Upkeep that takes longer is no longer alone. A process that was stopped (SIGSTOP) must not hold the lock for ever.
HOLD_LOCK_MOST = "15min"
BULK_PAUSE_SECONDS = 0.02
# A stock scheduler's clock may run ahead of the database's by this much.
STOCK_AHEAD_SECONDS = 2.0

# The queue for long tasks, see CELERY_TASK_ROUTES.
UPKEEP_QUEUE = "upkeep"
# A worker for it alone uses the processor time that the calls leave.
UPKEEP_NICE = 10
NOTE_SECONDS = 1.0

_pool: CallPool | None = None
_ending = threading.Event()


def call_pool() -> CallPool:
    """Return this worker process's pool, which `_open` made before the first task."""
    if _pool is None:
        raise RuntimeError("Deliveries are made by a worker that takes them; this process is none.")
    return _pool


def worker_name() -> str:
    """Return this process's name in the table of workers."""
    return f"{socket.gethostname()}:{os.getpid()}"[:100]


@signals.worker_init.connect
def _open(sender: Any, **_: Any) -> None:
    """Make the pool of a worker that takes deliveries; start the reports of a worker that takes upkeep."""
    queues = set(sender.app.amqp.queues.consume_from)
    if UPKEEP_QUEUE in queues:
        threading.Thread(target=_note_upkeep, name="upkeep-note", daemon=True).start()
    if queues <= {UPKEEP_QUEUE}:
        with contextlib.suppress(OSError):
            os.nice(UPKEEP_NICE)
        return
    global _pool  # noqa: PLW0603 - one pool a process is the point
    raise_descriptor_limit()
    rollups.tally.slots = settings.WEBTASK_CALLERS
    threads = settings.WEBTASK_CALLERS + waiting_room(settings.WEBTASK_CALLERS)
    client = Client(
        callers=threads,
        user_agent=f"webtask_scheduler/{__version__}",
        egress=settings.WEBTASK_EGRESS,
        ca_bundle=settings.WEBTASK_EGRESS_CA_BUNDLE,
        proxy=settings.WEBTASK_EGRESS_PROXY,
    )
    _pool = CallPool(
        callers=settings.WEBTASK_CALLERS,
        client=client,
        timeout_seconds=settings.WEBTASK_CALL_TIMEOUT_SECONDS,
        note=partial(_note_calls, client),
        flush=rollups.tally.flush,
    )
    # Until the other workers are counted, a second from now.
    _share_hosts(_pool, workers=1)


def _note_calls(client: Client, idle_seconds: float, held: int, running: int) -> None:
    """Note that this process makes calls, and learn which hosts a redirect may not lead to."""
    client.stops = frozenset(call_stops())
    name, kind = worker_name(), facts.CALLS
    facts.note_worker(name=name, kind=kind, starter_idle_seconds=idle_seconds, held=held, running=running)
    if _pool is not None and (settings.WEBTASK_HOST_MAX_PER_SECOND or settings.WEBTASK_HOST_MAX_IN_FLIGHT):
        _share_hosts(_pool, workers=facts.live_workers())


def _share_hosts(pool: CallPool, *, workers: int) -> None:
    pool.share_hosts(
        per_second=settings.WEBTASK_HOST_MAX_PER_SECOND,
        in_flight=settings.WEBTASK_HOST_MAX_IN_FLIGHT,
        workers=workers,
    )


def _note_upkeep() -> None:
    """Store once a second that this process is at work, and delete its row at its end."""
    name, kind = worker_name(), facts.UPKEEP
    while not _ending.wait(NOTE_SECONDS):
        try:
            facts.note_worker(name=name, kind=kind, starter_idle_seconds=0.0, held=0, running=0)
            if _pool is None:
                # A task of another app may make timers here.
                rollups.tally.flush()
        except (DatabaseError, InterfaceError):
            # The next second tries again; tasks with work for the database log that it is away.
            connection.close()
    _forget(kind)


def _forget(kind: str) -> None:
    with contextlib.suppress(DatabaseError, InterfaceError):
        facts.forget_worker(name=worker_name(), kind=kind)
    connection.close()


@signals.worker_shutting_down.connect
def _stop_taking(**_: Any) -> None:
    if _pool is not None:
        _pool.stop_taking()


@signals.worker_shutdown.connect
def _close(**_: Any) -> None:
    _ending.set()
    if _pool is not None:
        _pool.close()
        _forget(facts.CALLS)


@shared_task(name="webtask_scheduler.scheduler.tasks.deliver")
def deliver(items: list[list[Any]]) -> None:
    """Hand claimed deliveries, as [delivery id, lease token, host, flow] lists, to the callers of this process."""
    # A beat of the previous release sends no flow. One that traces sends when it claimed and published.
    call_pool().hand_over(
        (uuid.UUID(delivery_id), uuid.UUID(token), host, *(more or (0,))) for delivery_id, token, host, *more in items
    )


@shared_task(name=TASK_NAME)
def call_timer(timer_id: str) -> None:
    """Call one timer if it is due, and do nothing otherwise.

    A timer's PeriodicTask names this task, so that a stock scheduler that finds the row fires it too, once.
    """
    for item in claim_timer(uuid.UUID(timer_id), until_seconds=STOCK_AHEAD_SECONDS).held:
        # It is claimed here: no message is between.
        marks = item.marks * 2
        call_pool().hand_over([(item.delivery_id, item.token, item.host, item.flow, *marks)], at=item.at)


@shared_task(name="webtask_scheduler.scheduler.tasks.obey")
def obey(periodic_task_ids: list[int]) -> None:
    """Apply PeriodicTasks that a claim found to differ from their timers."""
    services.obey(periodic_task_ids)


@contextmanager
def _alone(name: str) -> Iterator[bool]:
    """Yield whether no other process does this upkeep now; a lost connection releases the lock.

    The lock is held by a transaction of a connection of its own. A lock of a session would be lost, or never released,
    behind a pooler that lets clients share sessions. The open transaction has no snapshot, so it keeps no old rows.
    """
    holder = connection.copy()
    try:
        holder.set_autocommit(False)
        with holder.cursor() as cursor:
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = %s", [HOLD_LOCK_MOST])
            cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext(%s))", [f"webtask_scheduler {name}"])
            alone = bool(cursor.fetchone()[0])
        yield alone
    finally:
        holder.close()


@shared_task(name="webtask_scheduler.scheduler.tasks.reconcile")
def reconcile() -> None:
    """Sweep all PeriodicTasks of timers for changes by a bare `.update()`; one sweep at a time."""
    with _alone("reconcile") as alone:
        after: int | None = 0 if alone else None
        while after is not None:
            after = services.reconcile(after=after, limit=SWEEP_ROWS)
            time.sleep(SWEEP_PAUSE_SECONDS)


@shared_task(name="webtask_scheduler.scheduler.tasks.bulk")
def bulk() -> None:
    """Go on with the bulk operations that were begun, a step of each in turn, for at most BULK_SECONDS.

    One process does so at a time. So many operations load the database no more than one, and a small one does not wait
    for the end of a large one.
    """
    ends_at = time.monotonic() + BULK_SECONDS
    with _alone("bulk") as alone:
        while alone and time.monotonic() < ends_at:
            unfinished = BulkOperation.objects.filter(finished_at=None).order_by("pk").select_related("owner")
            operations = list(unfinished)
            if not operations:
                break
            for operation in operations:
                begun = time.monotonic()
                services.step_bulk(operation)
                # Running timers come first: half of the time is left to them, however long a step takes.
                time.sleep(max(BULK_PAUSE_SECONDS, time.monotonic() - begun))


@shared_task(name="webtask_scheduler.scheduler.tasks.prune")
def prune() -> None:
    """Delete what the settings do not keep, in batches, for at most PRUNE_SECONDS; one at a time."""
    with _alone("prune") as alone:
        if alone:
            retention.run(seconds=PRUNE_SECONDS)


@shared_task(name="webtask_scheduler.scheduler.tasks.notify")
def notify() -> None:
    """Tell channels what happened, for at most NOTIFY_SECONDS. Mails alone need a lock: see `services.notifying`."""
    notifying.turn(seconds=NOTIFY_SECONDS, alone=partial(_alone, "mails"))
