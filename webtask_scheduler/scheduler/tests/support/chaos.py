"""The whole service under fire: real processes, faults at random, and the account at the end.

    ./scripts/chaos --seconds 60 --seed 1 [--json FILE]

Two beats, two workers and one web process run beside a PostgreSQL and a Redis of their own. Customers post timers over
HTTP and keep exactly what was answered with 201. Editors change others that recur every second, an operator pauses and
resumes a thousand by bulk operations, and some timers go to a receiver that answers in every malformed way. Meanwhile
processes are killed (-9) and stopped, PostgreSQL crashes, Redis is emptied, full, frozen or gone. Then everything is
left alone, and the books are compared: what was promised, what the receiver saw, and what the database says about it.
The plan of faults depends on the seed alone.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
import psycopg2  # type: ignore[import-untyped]
import redis

from scripts import servers
from webtask_scheduler import terminal
from webtask_scheduler.scheduler.queue.leases import RUNNING_LEASE_SECONDS
from webtask_scheduler.scheduler.rules.retry import MAX_ATTEMPTS
from webtask_scheduler.scheduler.tests.support import editors as account
from webtask_scheduler.scheduler.tests.support.editors import Editors
from webtask_scheduler.scheduler.tests.support.hostile import CASES
from webtask_scheduler.scheduler.tests.support.hostile import Server as HostileServer
from webtask_scheduler.scheduler.tests.support.receiver import Call, Receiver
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, START_SECONDS, Service

PROCESSES = ("web", "worker-1", "worker-2", "beat-1", "beat-2")
# What a fault may cost after it is over: the lease that it left behind, and this.
RECOVERY_SECONDS = 5.0
LIMIT_SECONDS = RUNNING_LEASE_SECONDS + RECOVERY_SECONDS
# A supervisor starts a dead process again after this.
RESTART_SECONDS = 1.0
# PostgreSQL writes what was committed without waiting at the latest after three rounds of its WAL writer, 0.6 s.
FORGETFUL_SECONDS = 2.0
# For what was called in vain at first: the retry's wait, a lost attempt, another one.
FINISH_SECONDS = 60.0
# Timers that editors change, beside those that customers post.
EDITED_TIMERS = 16
# Timers that bulk operations pause and resume, and the pause between two operations.
IDLE_TIMERS = 1000
BULK_PAUSE_SECONDS = 1.0
# Timers a second to the hostile receiver; one in so many gets an answer that is its own.
HOSTILE_RATE = 4.0
OWN_EVERY = 3
HOSTILE_TIMEOUT_SECONDS = 2
# What the log of PostgreSQL must not say.
REFUSED = ("deadlock detected", "duplicate key value")


# The service, and the servers that it needs


class Stack(Service):
    """Processes beside private servers, under a keeper that starts again what has died, as a supervisor would."""

    def __init__(self, directory: Path) -> None:
        # Not the parent's constructor: that one looks for the servers of the test run.
        self.postgres = servers.Postgres(directory / "postgres")
        self.redis = servers.Redis(directory / "redis")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs = directory / "logs"
        self.logs.mkdir()
        # For single processes, by name.
        self.variables: dict[str, dict[str, str]] = defaultdict(dict)
        # Ends of processes that nobody asked for.
        self.ended: list[str] = []
        self._from: dict[str, int] = {}
        self._killed: set[int] = set()
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        try:
            self.postgres.start()
            self.redis.start()
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            self.environment = os.environ | {
                "DATABASE_URL": self.postgres.url,
                "REDIS_URL": self.redis.url,
                "DJANGO_SETTINGS_MODULE": "config.settings.local",
            }
            self.broker = redis.Redis.from_url(self.redis.url, socket_timeout=5)
            migrate = [sys.executable, "manage.py", "migrate", "--noinput", "--verbosity", "0"]
            subprocess.run(migrate, cwd=CHECKOUT, env=self.environment, check=True)
            self.start(*PROCESSES)
            self._keeper.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, *names: str, wait: bool = True) -> None:
        for name in names:
            with (self.logs / f"{name}.log").open("ab") as log, self._lock:
                self._from[name] = log.tell()
                # A group of its own: a web process has a child, which dies and stops with it.
                self.processes[name] = subprocess.Popen(
                    self.command(name),
                    cwd=CHECKOUT,
                    env=self.environment | self.variables[name],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        if wait:
            for name in names:
                self._wait_for(name)

    def log(self, name: str) -> str:
        """Return what the present process of that name has printed."""
        with (self.logs / f"{name}.log").open(errors="replace") as log:
            log.seek(self._from[name])
            return log.read()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process and its children."""
        with self._lock:
            process = self.processes[name]
            if number == signal.SIGKILL:
                self._killed.add(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def kill(self, name: str) -> None:
        """End a process as a crash would, and return when the keeper has started another."""
        old = self.processes[name]
        self.signal(name, signal.SIGKILL)
        while self.processes[name] is old and not self._closing.is_set():
            time.sleep(0.02)

    def kill_child(self, name: str) -> None:
        """End what a web process has started to answer requests."""
        for child in psutil.Process(self.processes[name].pid).children(recursive=True):
            child.kill()

    def restart(self, name: str) -> None:
        """End a process in an orderly way, and return when another is up."""
        with self._lock:
            process = self.processes[name]
            self._killed.add(process.pid)
            process.terminate()
        process.wait(30)
        self.until(lambda: self.processes[name] is not process, seconds=10)
        self._wait_for(name)

    def close(self) -> None:
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        if hasattr(self, "broker"):
            self.broker.close()
        self.redis.kill()
        self.postgres.stop()

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/readyz")[0] == 200
        return False

    def rows(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run a statement in the database of the service."""
        connection = psycopg2.connect(self.postgres.url.replace("postgres://", "postgresql://", 1), connect_timeout=5)
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return list(cursor.fetchall()) if cursor.description else []

    def until(self, condition: Callable[[], Any], *, seconds: float) -> bool:
        """Wait for a condition; return whether it came about in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _keep(self) -> None:
        back: dict[str, float] = {}
        while not self._closing.wait(0.05):
            for name, process in list(self.processes.items()):
                if process.poll() is None:
                    continue
                if name not in back:
                    back[name] = time.monotonic() + RESTART_SECONDS
                    # A web process leaves its child behind, on the same port.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
                    if process.pid not in self._killed:
                        self.ended.append(f"{name} ended by itself with {process.returncode}")
                elif time.monotonic() >= back[name]:
                    del back[name]
                    self.start(name, wait=False)


# Those who post, and what is called


class Target(Receiver):
    """A receiver that also knows `/once/<anything>`: 503 for the first call to that path."""

    def __init__(self) -> None:
        super().__init__()
        # The caller was killed before its request was whole: no receiver would act on it.
        self.cut_off: list[Call] = []

    def _note(self, call: Call) -> None:
        if len(call.body) < int(call.headers["Content-Length"]):
            self.cut_off.append(call)
        else:
            super()._note(call)

    def _answer(self, handler: Any) -> None:
        if handler.path.startswith("/once/"):
            first = sum(call.path == handler.path for call in list(self.calls)) == 1
            with contextlib.suppress(OSError):
                self._plain(handler, 503 if first else 200)
        else:
            super()._answer(handler)


@dataclass(frozen=True)
class Accepted:
    """A timer that was answered with 201."""

    timer_id: str
    due_at: float


class Customers:
    """Post timers over HTTP and keep what was promised."""

    def __init__(self, stack: Stack, target: Target, *, seed: int = 0) -> None:
        self.accepted: list[Accepted] = []
        # By status; "none" for a request whose answer never came: its timer may or may not exist.
        self.answers: Counter[str] = Counter()
        self._stack = stack
        self._target = target
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._closing = threading.Event()

    def post(self, *, seconds: int, path: str) -> None:
        try:
            status, body = self._stack.post({"seconds": seconds, "web_url": self._target.url(path)})
            answer = str(status)
            if status == 201:
                self.accepted.append(Accepted(body["task_id"], datetime.fromisoformat(body["due_at"]).timestamp()))
        except (OSError, http.client.HTTPException, ValueError):
            answer = "none"
        self.answers[answer] += 1

    def burst(self, count: int, *, seconds: int, path: str = "/") -> None:
        """Post many at once, eight side by side."""

        def some() -> None:
            for _ in range(count // 8):
                self.post(seconds=seconds, path=path)

        threads = [threading.Thread(target=some) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @contextlib.contextmanager
    def posting(self, *, rate: float, threads: int = 8) -> Iterator[None]:
        """Post so many timers a second, as far as they are answered, while the block runs."""

        def go_on() -> None:
            next_at = time.monotonic()
            while not self._closing.wait(max(0.0, next_at - time.monotonic())):
                # What could not be posted in time is not made up for.
                next_at = max(next_at + threads / rate, time.monotonic())
                self.post(seconds=self._random.randint(0, 5), path=self._path())

        with going_on(go_on, self._closing, threads=threads):
            yield

    def _path(self) -> str:
        match self._random.random():
            case x if x < 0.2:
                return f"/sleep/{self._random.uniform(1, 3):.1f}"
            case x if x < 0.35:
                return f"/once/{next(self._numbers)}"
        return "/"


@contextlib.contextmanager
def going_on(loop: Callable[[], None], closing: threading.Event, *, threads: int = 1) -> Iterator[None]:
    """Run a loop in threads while the block runs; it ends when `closing` is set."""
    running = [threading.Thread(target=loop, daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        closing.set()
        for thread in running:
            thread.join()


class Victims:
    """Post timers to the hostile receiver: each must end, and those that it answers well get their own answers."""

    def __init__(self, stack: Stack, server: HostileServer, *, seed: int) -> None:
        self.accepted: dict[str, str] = {}
        self._stack = stack
        self._server = server
        self._random = random.Random(f"victims {seed}")
        self._closing = threading.Event()

    def posting(self) -> contextlib.AbstractContextManager[None]:
        return going_on(self._go_on, self._closing)

    def _go_on(self) -> None:
        for number in itertools.count():
            if self._closing.wait(1 / HOSTILE_RATE):
                return
            own = number % OWN_EVERY == 0
            path = f"/own/{number}" if own else f"/case/{self._random.randrange(len(CASES))}/{number}"
            body = {"seconds": self._random.randint(0, 2), "web_url": self._server.url(path)}
            if not own:
                body |= {"timeout_seconds": HOSTILE_TIMEOUT_SECONDS, "retry": {"max_attempts": 1}}
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                status, answer = self._stack.post(body)
                if status == 201:
                    self.accepted[answer["task_id"]] = path

    def wrong(self) -> list[str]:
        """Return what is wrong with the timers that were accepted, once all have ended or cannot any more."""
        statement = (
            "SELECT t.id::text, d.state, d.attempts, a.excerpt FROM scheduler_timer t"
            " JOIN scheduler_delivery d ON d.timer_id = t.id"
            " LEFT JOIN scheduler_attempt a ON a.delivery_id = d.id AND a.number = d.attempts WHERE t.web_url LIKE %s"
        )

        def rows() -> dict[str, tuple[Any, ...]]:
            return {row[0]: row[1:] for row in self._stack.rows(statement, self._server.url("/%"))}

        self._stack.until(
            lambda: all(state in ("succeeded", "failed") for state, *_ in rows().values()), seconds=FINISH_SECONDS
        )
        found = rows()
        wrong = []
        for timer_id, path in self.accepted.items():
            state, attempts, excerpt = found.get(timer_id, ("gone", 0, None))
            if state not in ("succeeded", "failed") or not attempts:
                wrong.append(f"timer {timer_id} to the hostile receiver is {state} after {attempts} attempts")
            elif path.startswith("/own/") and state == "succeeded" and excerpt != path:
                wrong.append(f"timer {timer_id} called {path} and got the answer {excerpt!r}")
        return wrong


class Operator:
    """Pauses and resumes many timers by bulk operations, one after the other; all of them must come to their end."""

    def __init__(self, stack: Stack, target: Target, *, seed: int) -> None:
        # By id, what was begun.
        self.begun: dict[str, str] = {}
        self._stack = stack
        self._url = target.url("/").replace("127.0.0.1", "127.0.0.9") + "idle"
        self._label = f"idle-{seed}"
        self._closing = threading.Event()

    def make(self) -> None:
        one = {"seconds": 86400, "web_url": self._url, "labels": {"idle": self._label}}
        status, answer = self._stack.post({"timers": [one] * IDLE_TIMERS}, "/timer/batch")
        assert status == 201, answer

    def operating(self) -> contextlib.AbstractContextManager[None]:
        return going_on(self._go_on, self._closing)

    def _go_on(self) -> None:
        for action in itertools.cycle(["pause", "resume"]):
            if self._closing.wait(BULK_PAUSE_SECONDS):
                return
            self._bulk(action)

    def _bulk(self, action: str) -> str | None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, psycopg2.Error):
            if not account.bulks_ended(self._stack.rows, list(self.begun)):
                return None
            body = {"action": action, "filter": {"label": f"idle={self._label}"}}
            status, answer = self._stack.post(body, "/timer/bulk")
            if status == 202:
                self.begun[answer["bulk_id"]] = action
                return str(answer["bulk_id"])
        return None

    def wrong(self) -> list[str]:
        """Resume all a last time; return what is wrong with the operations and the timers."""
        self._stack.until(lambda: self._bulk("resume"), seconds=FINISH_SECONDS)
        ids = list(self.begun)
        self._stack.until(lambda: account.bulks_ended(self._stack.rows, ids), seconds=FINISH_SECONDS)
        wrong = [
            f"bulk operation {key} ({self.begun[key]}): finished {finished}, matched {matched}, {error or 'no error'}"
            for key, finished, matched, error in self._stack.rows(
                "SELECT id::text, finished_at, matched, error FROM scheduler_bulkoperation WHERE id = ANY(%s::uuid[])",
                ids,
            )
            if finished is None or matched != IDLE_TIMERS or error
        ]
        left = self._stack.rows(
            "SELECT d.state, task.enabled, count(*) FROM scheduler_timer t"
            " JOIN scheduler_delivery d ON d.timer_id = t.id"
            " JOIN django_celery_beat_periodictask task ON task.id = t.periodic_task_id"
            " WHERE t.web_url = %s GROUP BY 1, 2",
            self._url,
        )
        if left != [("scheduled", True, IDLE_TIMERS)]:
            wrong.append(f"after a last resume, of {IDLE_TIMERS} idle timers: {left}")
        return wrong


# Faults


@dataclass(frozen=True)
class Fault:
    """What is done to whom: when, in seconds from the beginning, and for how long."""

    at: float
    target: str
    kind: str
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:5.1f} s  {self.target}: {self.kind}{lasting}"


@dataclass
class Struck:
    """A fault that was done; moments by the machine's clock."""

    fault: Fault
    began: float
    ended: float | None = None
    # PostgreSQL may have forgotten what was committed without waiting for the disk.
    forgetful: bool = False


# Kinds by target: weight, and the shortest and longest time that it lasts.
_PROCESS: dict[str, tuple[float, float, float]] = {"kill": (2, 0, 0), "stop": (2, 1, 8)}
KINDS: dict[str, dict[str, tuple[float, float, float]]] = {
    "web": {"kill": (1, 0, 0), "kill child": (1, 0, 0), "stop": (1, 1, 8)},
    "worker-1": _PROCESS,
    "worker-2": _PROCESS,
    "beat-1": _PROCESS,
    "beat-2": _PROCESS,
    "postgres": {"crash": (1, 0, 3), "restart": (1, 0, 2), "kill backend": (1, 0, 0), "freeze": (0.7, 1, 5)},
    "redis": {"crash": (1, 0, 3), "restart": (1, 0, 2), "empty": (1.5, 0, 0), "freeze": (0.7, 1, 8), "full": (1, 1, 5)},
}
FORGETFUL = {("postgres", "crash"), ("postgres", "kill backend")}
# Until a target that was hit may be hit again.
REST_SECONDS = 5.0
LONG_OUTAGE_SECONDS = 30.0


def plan_faults(*, seed: int, seconds: float) -> list[Fault]:
    """Return what will happen: the same for the same seed. Every third seed of a long run has a long broker outage."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    if seed % 3 == 0 and seconds >= 2 * LONG_OUTAGE_SECONDS:
        at = chance.uniform(2, seconds - LONG_OUTAGE_SECONDS - 5)
        faults.append(Fault(round(at, 2), "redis", "freeze", LONG_OUTAGE_SECONDS))
    at = chance.uniform(1, 2)
    choices = [(target, kind, *numbers) for target, kinds in KINDS.items() for kind, numbers in kinds.items()]
    while at < seconds:
        target, kind, _, least, most = chance.choices(choices, [choice[2] for choice in choices])[0]
        lasting = round(chance.uniform(least, most), 2)
        busy = [f for f in faults if f.target == target]
        if all(at + lasting + REST_SECONDS < f.at or at > f.at + f.seconds + REST_SECONDS for f in busy):
            faults.append(Fault(round(at, 2), target, kind, lasting))
            # Several in short order, then a while of nothing.
            at += chance.uniform(0.1, 1.5) if chance.random() < 0.6 else chance.uniform(2, 5)
        else:
            at += 0.1
    return sorted(faults, key=lambda fault: fault.at)


class Saboteur:
    """Does faults, each in a thread of its own, and notes when they began and were over."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.struck: list[Struck] = []
        self.errors: list[str] = []
        self._threads: list[threading.Thread] = []

    def begin(self, fault: Fault) -> None:
        thread = threading.Thread(target=self.strike, args=[fault], name=f"fault {fault}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def present(self) -> list[Struck]:
        return [struck for struck in self.struck if struck.ended is None]

    def strike(self, fault: Fault) -> None:
        struck = Struck(fault, time.time(), forgetful=(fault.target, fault.kind) in FORGETFUL)
        self.struck.append(struck)
        try:
            if fault.target == "postgres":
                self._postgres(fault)
            elif fault.target == "redis":
                self._redis(fault)
            else:
                self._process(fault)
        except Exception as error:
            self.errors.append(f"{fault}: {error!r}")
        struck.ended = time.time()

    def _process(self, fault: Fault) -> None:
        if fault.kind == "kill":
            self._stack.kill(fault.target)
        elif fault.kind == "kill child":
            self._stack.kill_child(fault.target)
        else:
            with self._stopped(self._stack.processes[fault.target].pid):
                time.sleep(fault.seconds)

    def _postgres(self, fault: Fault) -> None:
        postgres = self._stack.postgres
        if fault.kind == "freeze":
            with self._stopped(postgres.pid):
                time.sleep(fault.seconds)
        elif fault.kind == "kill backend":
            sessions = (
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            (pid,) = random.Random(fault.at).choice(sorted(self._stack.rows(sessions)))
            # PostgreSQL then ends all sessions and recovers as after a crash.
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            self._stack.until(postgres.answers, seconds=30)
        else:
            if fault.kind == "crash" and postgres.process:
                postgres.process.send_signal(signal.SIGQUIT)
                postgres.process.wait(10)
            postgres.stop()
            time.sleep(fault.seconds)
            postgres.start()

    def _redis(self, fault: Fault) -> None:
        broker = self._stack.redis
        if fault.kind == "freeze":
            with self._stopped(broker.pid):
                time.sleep(fault.seconds)
        elif fault.kind == "empty":
            self._stack.broker.flushall()
        elif fault.kind == "full":
            # What writes is refused, as with a full disk.
            self._stack.broker.config_set("maxmemory", 1)
            time.sleep(fault.seconds)
            self._stack.broker.config_set("maxmemory", 0)
        else:
            broker.kill() if fault.kind == "crash" else broker.stop()
            time.sleep(fault.seconds)
            broker.start()

    @contextlib.contextmanager
    def _stopped(self, pid: int) -> Iterator[None]:
        process = psutil.Process(pid)
        # First the parent, which might otherwise notice that a child was stopped.
        family = [process, *process.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        try:
            yield
        finally:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.resume()


# The account


@dataclass
class Verdict:
    """What came of it. `wrong` says in a line each what must not be."""

    accepted: int = 0
    called: int = 0
    lost: int = 0
    early: int = 0
    # Timers in the database whose answer never came; they are promises too.
    unanswered: int = 0
    calls: int = 0
    # Requests that were not whole, as their caller was killed.
    cut_off: int = 0
    # Second calls that the policy wants, after an answer that was not a success.
    retries: int = 0
    # Calls of a delivery beyond its first that are no such retries, by what explains them.
    duplicates: dict[str, int] = field(default_factory=dict)
    unfinished: int = 0
    # Answers that editors got, calls of their timers, and pauses that were seen to hold.
    edits: dict[str, int] = field(default_factory=dict)
    edited_calls: int = 0
    pauses_held: int = 0
    # Timers to the hostile receiver, and bulk operations over a thousand timers.
    hostile: int = 0
    bulks: int = 0
    worst_late_seconds: float = 0.0
    worst_recovery_seconds: float = 0.0
    limit_seconds: float = LIMIT_SECONDS
    answers: dict[str, int] = field(default_factory=dict)
    log_lines: dict[str, int] = field(default_factory=dict)
    tracebacks: dict[str, int] = field(default_factory=dict)
    ended_by_themselves: list[str] = field(default_factory=list)
    slowest: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        duplicates = ", ".join(f"{count} {reason}" for reason, count in self.duplicates.items())
        lines = [
            f"answers      {', '.join(f'{count} x {status}' for status, count in sorted(self.answers.items()))}",
            f"accepted     {self.accepted}, and {self.unanswered} made whose answer never came",
            f"called       {self.called} of those accepted, in {self.calls} calls in all, {self.cut_off} cut off",
            f"lost         {self.lost}",
            f"early        {self.early}",
            f"retries      {self.retries}",
            f"duplicates   {sum(self.duplicates.values())}{f' ({duplicates})' if duplicates else ''}",
            f"unfinished   {self.unfinished}",
            f"edited       {sum(self.edits.values())} requests, {self.edited_calls} calls, {self.pauses_held} pauses",
            f"hostile      {self.hostile} timers to a hostile receiver",
            f"bulk         {self.bulks} operations over {IDLE_TIMERS:,} timers",
            f"latest call  {self.worst_late_seconds:.1f} s after its moment",
            f"recovery     {self.worst_recovery_seconds:.1f} of {self.limit_seconds:g} s from a fault to a call",
            f"logs         {sum(self.log_lines.values())} lines, {sum(self.tracebacks.values())} tracebacks",
            *(f"ended        {line}" for line in self.ended_by_themselves),
            *(f"slow         {line}" for line in self.slowest),
            *(f"WRONG        {line}" for line in self.wrong),
        ]
        return "\n".join(lines)


@dataclass
class _Row:
    timer_id: str
    due_at: float
    state: str
    attempts: int
    # The error of each attempt by its number; empty for a success.
    errors: dict[int, str] = field(default_factory=dict)
    # Of a timer that editors change.
    edited: bool = False


def read_rows(stack: Stack, target: Target) -> dict[str, _Row]:
    """Return what the database says about the deliveries to a target, by their ids."""
    mine = target.url("/") + "%"
    deliveries = stack.rows(
        "SELECT d.id::text, t.id::text, extract(epoch FROM d.due_at)::float8, d.state, d.attempts,"
        " strpos(t.web_url, '/edited/') > 0"
        " FROM scheduler_delivery d JOIN scheduler_timer t ON t.id = d.timer_id WHERE t.web_url LIKE %s",
        mine,
    )
    rows = {
        key: _Row(timer_id, due_at, state, attempts, edited=edited)
        for key, timer_id, due_at, state, attempts, edited in deliveries
    }
    for delivery_id, number, error in stack.rows(
        "SELECT a.delivery_id::text, a.number, a.error FROM scheduler_attempt a"
        " JOIN scheduler_delivery d ON d.id = a.delivery_id JOIN scheduler_timer t ON t.id = d.timer_id"
        " WHERE t.web_url LIKE %s",
        mine,
    ):
        if delivery_id in rows:
            rows[delivery_id].errors[number] = error
    return rows


def settle(stack: Stack, target: Target, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Wait until every delivery has ended, or for as long as that may take."""
    mine = target.url("/") + "%"
    said_at = time.monotonic()

    def ended() -> bool:
        nonlocal said_at
        ((waiting,),) = stack.rows(
            "SELECT count(*) FROM scheduler_delivery d JOIN scheduler_timer t ON t.id = d.timer_id"
            " WHERE d.finished_at IS NULL AND t.web_url LIKE %s",
            mine,
        )
        if time.monotonic() - said_at >= 1:
            said_at = time.monotonic()
            say(f"quiet: {waiting} have not ended yet")
        return bool(waiting == 0)

    stack.until(ended, seconds=LIMIT_SECONDS + FINISH_SECONDS)
    # A call too many may still come.
    time.sleep(0.5)


def judge(
    stack: Stack, target: Target, customers: Customers, struck: list[Struck], editors: Editors | None = None
) -> Verdict:
    """Compare what was promised, what was called and what was written down."""
    everything = read_rows(stack, target)
    rows = {delivery_id: row for delivery_id, row in everything.items() if not row.edited}
    calls: dict[str, list[Call]] = defaultdict(list)
    edited: dict[str, list[Call]] = defaultdict(list)
    for call in sorted(target.calls, key=lambda call: call.at):
        (edited if call.path.startswith("/edited/") else calls)[call.headers["webhook-id"]].append(call)
    found = Verdict(
        accepted=len(customers.accepted),
        calls=len(target.calls),
        cut_off=len(target.cut_off),
        answers=dict(customers.answers),
        ended_by_themselves=list(stack.ended),
    )
    _judge_promises(found, rows, calls, customers.accepted)
    _judge_rows(found, rows, calls, customers.accepted)
    slowest: list[tuple[float, str]] = []
    for delivery_id, made in calls.items():
        if delivery_id in rows:
            slowest += _judge_calls(found, delivery_id, rows[delivery_id], made, struck)
        else:
            found.wrong.append(f"delivery {delivery_id} was called and is not in the database")
    for call in target.cut_off:
        row = everything.get(call.headers["webhook-id"])
        if row and call.at < row.due_at:
            found.early += 1
            found.wrong.append(f"delivery {call.headers['webhook-id']} was called too early, and cut off")
    if editors is not None:
        _judge_editors(found, stack, editors)
        _judge_edited(found, everything, edited, [one.began for one in struck if one.forgetful])
    found.slowest = [line for _, line in sorted(slowest, reverse=True)[:3]]
    for path in sorted(stack.logs.iterdir()):
        text = path.read_text(errors="replace")
        found.log_lines[path.stem] = text.count("\n")
        found.tracebacks[path.stem] = text.count("Traceback (most recent call last)")
    return found


def _judge_editors(found: Verdict, stack: Stack, editors: Editors) -> None:
    """Judge what editors were answered."""
    found.edits = dict(editors.answers)
    found.pauses_held, wrong = account.called_while_paused(stack.rows, editors)
    found.wrong += wrong + account.broken(stack.rows, editors)
    # 503 is an answer: the database was away.
    found.wrong += [failure for failure in editors.failures if ": 503 " not in failure]
    log = stack.postgres.log_file.read_text(errors="replace")
    found.wrong += [f"PostgreSQL says {line!r}" for line in log.splitlines() if any(text in line for text in REFUSED)]


def _judge_edited(found: Verdict, rows: dict[str, _Row], calls: dict[str, list[Call]], crashes: list[float]) -> None:
    """Judge the calls of timers that were edited: none is early, each is written down, and a second one explained."""
    for delivery_id, made in calls.items():
        found.edited_calls += len(made)
        row = rows.get(delivery_id)
        for index, call in enumerate(made):
            # What was committed without waiting for the disk: its start, or the record that made the delivery.
            forgotten = any(call.at - FORGETFUL_SECONDS <= crash <= call.at + FORGETFUL_SECONDS for crash in crashes)
            number = call.json["attempt"]
            if row is not None and call.at < row.due_at:
                found.early += 1
                found.wrong.append(f"delivery {delivery_id} was called {row.due_at - call.at:.3f} s too early")
            if row is None or number not in row.errors:
                if not forgotten:
                    found.wrong.append(f"delivery {delivery_id}: call {index + 1} is not written down")
            elif index:
                reason = _explain(row, made[:index], call, crashes)
                if reason != "retry":
                    found.duplicates[reason] = found.duplicates.get(reason, 0) + 1
                if reason.startswith("not"):
                    found.wrong.append(f"delivery {delivery_id}: call {index + 1} is {reason}")


def end_edits(stack: Stack, target: Target, editors: Editors) -> list[str]:
    """Wait until every timer that is enabled has been called again, then cancel them all; return which were not."""
    stack.until(lambda: account.bulks_ended(stack.rows), seconds=FINISH_SECONDS)
    marked = len(target.calls)
    lively = account.enabled(stack.rows, editors)

    def silent() -> set[str]:
        return lively - {call.headers["webtask-timer-id"] for call in target.calls[marked:]}

    stack.until(lambda: not silent(), seconds=LIMIT_SECONDS)
    left = [f"timer {timer_id} is enabled and was not called again" for timer_id in silent()]
    editors.cancel_all(stack.rows)
    return left


def _judge_promises(
    found: Verdict, rows: dict[str, _Row], calls: dict[str, list[Call]], accepted: list[Accepted]
) -> None:
    by_timer = {row.timer_id: (delivery_id, row) for delivery_id, row in rows.items()}
    for promise in accepted:
        delivery_id, row = by_timer.get(promise.timer_id, ("", None))
        if row is None:
            found.lost += 1
            found.wrong.append(f"timer {promise.timer_id} was answered with 201 and is not in the database")
        elif not calls.get(delivery_id):
            found.lost += 1
            found.wrong.append(f"timer {promise.timer_id} was never called; its delivery is {row.state}")
        else:
            found.called += 1
            if abs(row.due_at - promise.due_at) > 0.0001:
                found.wrong.append(f"timer {promise.timer_id} was promised for another moment than it is due")


def _judge_rows(found: Verdict, rows: dict[str, _Row], calls: dict[str, list[Call]], accepted: list[Accepted]) -> None:
    promised = {promise.timer_id for promise in accepted}
    for delivery_id, row in rows.items():
        if row.timer_id not in promised:
            found.unanswered += 1
            if not calls.get(delivery_id):
                found.lost += 1
                found.wrong.append(f"timer {row.timer_id}, made without an answer, was never called: {row.state}")
        if row.state == "succeeded":
            if not calls.get(delivery_id):
                found.wrong.append(f"delivery {delivery_id} is said to have succeeded and was never called")
        # Hit five times, it is a dead letter; what was lost each time is accounted for with its calls.
        elif row.state != "failed" or row.attempts < MAX_ATTEMPTS:
            found.unfinished += 1
            found.wrong.append(f"delivery {delivery_id} is {row.state} after {row.attempts} attempts")


def _judge_calls(
    found: Verdict, delivery_id: str, row: _Row, made: list[Call], struck: list[Struck]
) -> Iterator[tuple[float, str]]:
    """Judge the calls of one delivery; yield how long each was waited for, and a line about it."""
    crashes = [one.began for one in struck if one.forgetful]
    # A web process has no part in a call.
    hits = [one for one in struck if one.fault.target != "web"]
    for index, call in enumerate(made):
        if call.at < row.due_at:
            found.early += 1
            found.wrong.append(f"delivery {delivery_id} was called {row.due_at - call.at:.3f} s too early")
        reason = _explain(row, made[:index], call, crashes) if index else ""
        if reason == "retry":
            found.retries += 1
            continue
        if index:
            found.duplicates[reason] = found.duplicates.get(reason, 0) + 1
        else:
            found.worst_late_seconds = max(found.worst_late_seconds, call.at - row.due_at)
        if reason.startswith("not"):
            found.wrong.append(f"delivery {delivery_id}: call {index + 1} is {reason}")
        since = made[index - 1].at if index else row.due_at
        # What was still going on when the call came took no time afterwards.
        over = [min(one.ended or call.at, call.at) for one in hits if one.began <= call.at]
        recovery = call.at - max([since, *over])
        found.worst_recovery_seconds = max(found.worst_recovery_seconds, recovery)
        if recovery > LIMIT_SECONDS:
            found.wrong.append(f"delivery {delivery_id} was called {recovery:.1f} s after the last fault")
        between = sum(since - 1 <= one.began <= call.at for one in hits)
        yield (
            call.at - since,
            f"{call.at - since:.1f} s to call {index + 1} of {delivery_id}, {between} faults in between",
        )


def _explain(row: _Row, before: list[Call], call: Call, crashes: list[float]) -> str:
    """Say why a delivery was called once more."""
    number = call.json["attempt"]
    same = [one for one in before if one.json["attempt"] == number]
    if same:
        # Its start was committed without waiting for the disk; it was made at most a lease before the call.
        first, last = same[0].at - RUNNING_LEASE_SECONDS, same[-1].at + FORGETFUL_SECONDS
        near = any(first <= crash <= last for crash in crashes)
        return "start forgotten by a crash of PostgreSQL" if near else "not explained: its number was called before"
    if number > row.attempts:
        return "not explained: its start is not in the database"
    earlier = min(number, before[-1].json["attempt"])
    error = row.errors.get(earlier)
    if error is None:
        return f"not explained: attempt {earlier} has no record"
    if error == "":
        return f"not explained: attempt {earlier} is recorded as a success"
    return {
        "status": "retry",
        "lost": "outcome lost",
        "interrupted": "interrupted by an orderly stop",
    }.get(error, f"after an attempt that ended in {error}")


# A run


def suffer(
    stack: Stack,
    target: Target,
    hostile: HostileServer,
    plan: list[Fault],
    *,
    seed: int,
    seconds: float,
    rate: float,
    say: Callable[[str], None],
    progress: terminal.Progress | None = None,
) -> dict[str, Any]:
    """Do a plan of faults to a service that runs, wait until all is quiet, and return the report."""
    say("\n".join(["the plan:", *map(str, plan)]))
    customers = Customers(stack, target, seed=seed)
    editors = Editors(stack.port, target.url, seed=seed, timers=EDITED_TIMERS)
    operator = Operator(stack, target, seed=seed)
    saboteur = Saboteur(stack)
    ready = stack.until(stack.is_ready, seconds=START_SECONDS)
    waiting = list(plan)
    editors.make()
    operator.make()
    victims = Victims(stack, hostile, seed=seed)
    with customers.posting(rate=rate), editors.editing(), operator.operating(), victims.posting():
        begun = time.monotonic()
        said = 0
        while (passed := time.monotonic() - begun) < seconds:
            while waiting and waiting[0].at <= passed:
                saboteur.begin(waiting.pop(0))
            if passed - said >= 1:
                said += 1
                if progress:
                    progress.add()
                present = ", ".join(f"{one.fault.target} {one.fault.kind}" for one in saboteur.present)
                say(f"{passed:4.0f} s  accepted {len(customers.accepted)}, calls {len(target.calls)}  {present}")
            time.sleep(0.02)
        saboteur.end()
    quiet_at = time.time()
    silent = end_edits(stack, target, editors)
    settle(stack, target, say=say)
    found = judge(stack, target, customers, saboteur.struck, editors)
    found.wrong += saboteur.errors + silent + victims.wrong() + operator.wrong()
    found.hostile, found.bulks = len(victims.accepted), len(operator.begun)
    if not ready:
        found.wrong.append("/readyz did not answer 200 before the first fault")
    say(str(found))
    return {
        "passed": found.passed,
        "seed": seed,
        "seconds": seconds,
        "rate": rate,
        "plan": [asdict(fault) for fault in plan],
        "faults": [asdict(one) for one in saboteur.struck],
        "quiet_at": quiet_at,
        **asdict(found),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="The whole service under fire.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults go on (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="decides the plan of faults (default 1)")
    parser.add_argument("--rate", type=float, default=20.0, help="timers posted a second (default 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    parser.add_argument(
        "--keep", type=Path, metavar="DIRECTORY", help="work in this new directory and leave it: logs, data"
    )
    options = parser.parse_args()
    # An end by another's hand still ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = plan_faults(seed=options.seed, seconds=options.seconds)
    with contextlib.ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True)
        directory = options.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True))
        )
        _say(f"seed {options.seed}, {options.seconds:g} s, {options.rate:g} timers/s")
        service, target = stack.enter_context(Stack(directory)), stack.enter_context(Target())
        hostile = stack.enter_context(HostileServer())
        progress = stack.enter_context(terminal.Progress("seconds of faults", total=options.seconds))

        def say(line: str) -> None:
            with progress.aside():
                _say(line)

        report = suffer(
            service,
            target,
            hostile,
            plan,
            seed=options.seed,
            seconds=options.seconds,
            rate=options.rate,
            say=say,
            progress=progress if sys.stderr.isatty() else None,
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    _say("PASSED" if report["passed"] else "FAILED")
    return 0 if report["passed"] else 1


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
