"""The base of every benchmark: private servers, the shipped processes, the receiver, the machine's own figures."""

import contextlib
import functools
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import psutil  # type: ignore[import-untyped]
import psycopg2  # type: ignore[import-untyped]

from benchmarks.receiver import address
from scripts import launch, servers
from scripts.processes import command

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"

START_SECONDS = 60.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05
# Settings of the service's operator; the benchmarks measure what is shipped, and report what they change.
NOT_OURS = ("HOST", "PORT", "FLOWER_PORT", "WORKERS", "BEATS", "WEB_WORKERS", "DATABASE_URL", "REDIS_URL", "LOG_LEVEL")


class BenchmarkError(Exception):
    """A benchmark cannot go on."""


def say(text: str) -> None:
    print(text, flush=True)


def environment() -> dict[str, str]:
    """Return ours without what would make the service other than as shipped."""
    return {name: value for name, value in os.environ.items() if name not in NOT_OURS and "WEBTASK" not in name}


def free_port() -> int:
    ports = (random.choice(servers.PORTS) for _ in range(1000))
    found: int = next(port for port in ports if servers.port_is_free("127.0.0.1", port))
    return found


def spawn(command: Sequence[str], log: IO[bytes] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that the kernel ends when this one is gone, and that Ctrl-C leaves to us."""
    files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT} if log else {}
    started: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=functools.partial(servers.die_with_parent, signal.SIGTERM),  # noqa: PLW1509 - one thread here
        **files,
        **options,
    )
    return started


def end(processes: Sequence[subprocess.Popen[bytes]], seconds: float = STOP_SECONDS) -> None:
    """Ask all to end, wait, and use force on their groups."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        # Also what a leader left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and all its children, of those that have ended too."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += sum(one.cpu_times()[:4])
    return total


# The machine


class Meter:
    """How much of the machine was in use, and how much was withheld from it, between two moments."""

    def __init__(self) -> None:
        self._begun = time.time()
        self._load = os.getloadavg()[0]
        self._ticks = self._read()
        self._own = cpu_seconds(os.getpid())

    @staticmethod
    def _read() -> list[int]:
        # user nice system idle iowait irq softirq steal
        return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    def read(self) -> dict[str, float]:
        spent = [after - before for before, after in zip(self._ticks, self._read(), strict=True)]
        total = max(1, sum(spent))
        busy = 100 * (total - spent[3] - spent[4]) / total
        own = 100 * (cpu_seconds(os.getpid()) - self._own) * os.sysconf("SC_CLK_TCK") / total
        return {
            "seconds": round(time.time() - self._begun, 1),
            "busy_percent": round(busy, 1),
            "steal_percent": round(100 * spent[7] / total, 2),
            # By whatever is not part of the benchmark: the machine's own work, and what should not have run beside it.
            "others_percent": round(max(0.0, busy - own - 100 * spent[7] / total), 1),
            "load_at_start": round(self._load, 2),
        }


def machine() -> dict[str, Any]:
    words = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0]
    return {
        "processors": os.cpu_count(),
        "model": words.strip(" \t:"),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": sys.version.split()[0],
    }


def disturbance(machine: dict[str, float]) -> str:
    return f"stolen {machine['steal_percent']} %, others {machine['others_percent']} % of the machine"


# The receiver


class Receiver:
    """The process of benchmarks.receiver."""

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self._process = spawn(
            [sys.executable, "-m", "benchmarks.receiver", str(hosts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self.port = int(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end([self._process], 2.0)

    def url(self, path: str, number: int = 0) -> str:
        return f"http://{address(number % self.hosts)}:{self.port}{path}"

    def count(self) -> int:
        return int(self._ask("count"))

    def take(self) -> list[tuple[float, str]]:
        """Return the calls since the last time: (seconds since 1970, path), oldest first."""
        return [(at, path) for at, path in json.loads(self._ask("take"))]

    def wait_for(self, count: int, *, until: float) -> bool:
        """Wait until that many calls were answered; False if they were not by then, in seconds since 1970."""
        while self.count() < count:
            if time.time() > until:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _ask(self, command: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("The receiver ended.")
        return line.decode()


# A site: servers with data, and the processes that may run beside them


class Site:
    """A PostgreSQL and a Redis of its own, as `scripts/run` starts them: with every write kept from a crash."""

    def __init__(self, directory: Path, *, django_settings: str = "config.settings.local") -> None:
        self.directory = directory
        self.database = servers.Postgres(directory / "postgres")
        self.broker = servers.Redis(directory / "redis")
        self.django_settings = django_settings
        self.waiting = 0

    def __enter__(self) -> Self:
        self.database.start()
        self.broker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.stop()
        self.database.stop()

    @property
    def environment(self) -> dict[str, str]:
        return environment() | {
            "DATABASE_URL": self.database.url,
            "REDIS_URL": self.broker.url,
            "DJANGO_SETTINGS_MODULE": self.django_settings,
        }

    def migrate(self) -> Self:
        self.run([sys.executable, "manage.py", "migrate", "--noinput"], quiet=True)
        return self

    def run(self, command: Sequence[str], *, data: Any = None, quiet: bool = False, **variables: str) -> str:
        """Run a command to its end in this site's environment, with `data` as JSON on its input; return its output."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | variables,
            input=json.dumps(data).encode() if data is not None else b"",
            stdout=None if not quiet and data is None else subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else None,
            check=False,
        )
        if done.returncode:
            output = b"".join(part or b"" for part in (done.stdout, done.stderr)).decode()
            raise BenchmarkError(f"{' '.join(command)} failed:\n{output[-3000:]}")
        return (done.stdout or b"").decode()

    def inside(self, *arguments: str, data: Any = None) -> str:
        return self.run([sys.executable, "-m", "benchmarks.inside", *arguments], data=data, quiet=True)

    def fill(self, count: int) -> None:
        """Bring the number of timers that wait for a moment hours away up to this."""
        if count > self.waiting:
            say(f"Preloading {count - self.waiting} timers due in hours")
            self.run([sys.executable, "-m", "benchmarks.inside", "fill", str(count - self.waiting)])
            self.waiting = count

    def empty(self) -> None:
        """Remove every timer, the rows that show them, and bulk operations that were begun."""
        self.query(
            "TRUNCATE django_celery_beat_clockedschedule, django_celery_beat_intervalschedule,"
            " django_celery_beat_periodictask, scheduler_bulkoperation CASCADE"
        )
        self.waiting = 0

    def schedule(self, timers: Sequence[tuple[float, str]]) -> None:
        """Create timers in bulk: (due in seconds since 1970, URL)."""
        self.inside("schedule", data=timers)

    def query(self, sql: str, *arguments: Any, **named: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(psycopg2.connect(self.database.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, arguments or named or None)
                return list(cursor.fetchall()) if cursor.description else []

    def settings(self) -> dict[str, Any]:
        """The settings of the service and of PostgreSQL that the figures depend on."""
        found: dict[str, Any] = json.loads(self.inside("settings"))
        names = ("server_version", "fsync", "full_page_writes", "synchronous_commit", "shared_buffers")
        found |= {f"postgresql {name}": self.query(f"SHOW {name}")[0][0] for name in names}
        return found


class Sites:
    """Sites by name, kept for the length of one run of the command so that a million rows are made once."""

    def __init__(self) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        self._directory = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
        self._stack = contextlib.ExitStack()
        self._sites: dict[str, Site] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stack.close()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def bare(self, name: str, **options: str) -> Site:
        """Return a site with empty servers, the same for the same name."""
        if name not in self._sites:
            # Root's PostgreSQL runs as another account, which only passes through.
            self._directory.chmod(0o711)
            self._sites[name] = self._stack.enter_context(Site(self._directory / name, **options))
        return self._sites[name]

    def ours(self, *, waiting: int = 0) -> Site:
        """Return a migrated site with that many timers waiting."""
        name = f"waiting-{waiting}"
        if name not in self._sites:
            site = self.bare(name).migrate()
            site.fill(waiting)
        return self._sites[name]


class Service:
    """The shipped processes beside a site, by the commands of `scripts/run`.

    `worker_prefix` is a command that starts a worker by the command that it is given.
    """

    def __init__(
        self, site: Site, *, workers: int = 1, beats: int = 1, worker_prefix: Sequence[str] = (), **variables: str
    ) -> None:
        self.site = site
        self._variables = variables
        self._worker_prefix = worker_prefix
        os.environ |= {"WORKERS": str(workers), "BEATS": str(beats)}
        self.names: list[str] = launch.application()
        self.web_port, self.flower_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        # Messages of a former run would name deliveries that are done.
        self.site.run([sys.executable, "-c", EMPTY_BROKER], quiet=True)
        os.environ |= {"PORT": str(self.web_port), "FLOWER_PORT": str(self.flower_port)}
        try:
            for name in self.names:
                self._log(name).unlink(missing_ok=True)
                prefix = self._worker_prefix if name.partition("-")[0] == "worker" else ()
                with self._log(name).open("wb") as log:
                    self.processes[name] = spawn(
                        [*prefix, *self.command(name)], log, env=self.site.environment | self._variables
                    )
            deadline = time.monotonic() + START_SECONDS
            for name in self.names:
                self._wait_for(name, deadline)
        except BaseException:
            self.__exit__()
            raise
        # The start itself keeps the machine busy for a moment.
        time.sleep(2)
        return self

    def __exit__(self, *_: object) -> None:
        end(list(self.processes.values()))

    def command(self, name: str) -> list[str]:
        """Return how a process is started."""
        return command(name)

    def commands(self) -> dict[str, str]:
        """Return the commands of the processes, for the report."""
        os.environ |= {"PORT": "8000", "FLOWER_PORT": "5555"}
        return {name: shlex.join(["python", *self.command(name)[1:]]) for name in self.names}

    def cpu_seconds(self) -> dict[str, float]:
        pids = {name: process.pid for name, process in self.processes.items()}
        pids |= {"postgres": self.site.database.pid, "redis": self.site.broker.pid}
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    def create(self, order: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start the client with an order; see benchmarks.client."""
        return start_client(order | {"port": self.web_port})

    def watch(self, count: int, *, plainly: bool) -> subprocess.Popen[bytes]:
        """Open so many browsers, each with a page that is live, or what asks as they do; see benchmarks.watchers."""
        command = [sys.executable, "-m", "benchmarks.watchers", f"http://127.0.0.1:{self.web_port}", str(count)]
        command += ["plainly"] if plainly else []
        process = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout
        if process.stdout.readline() != b"watching\n":
            end([process], 1.0)
            raise BenchmarkError("The browsers did not open the pages.")
        return process

    def first_late(self) -> dict[str, int]:
        """Return the histogram of lateness of first attempts from `/metrics`: cumulative counts by upper bound."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(r'^webtask_lateness_seconds_bucket{attempt="first",le="([^"]+)"} (\S+)$', text, re.MULTILINE)
        return {bound: int(float(count)) for bound, count in found}

    def log(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")

    def _log(self, name: str) -> Path:
        return self.site.directory / f"{name}.log"

    def _wait_for(self, name: str, deadline: float) -> None:
        while not self._is_up(name):
            if self.processes[name].poll() is not None:
                raise BenchmarkError(f"{name} ended:\n{self.log(name)[-3000:]}")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{name} did not come up:\n{self.log(name)[-3000:]}")
            time.sleep(POLL_SECONDS)

    def _is_up(self, name: str) -> bool:
        match name.partition("-")[0]:
            case "web":
                return answers(f"http://127.0.0.1:{self.web_port}/healthz")
            case "flower":
                return answers(f"http://127.0.0.1:{self.flower_port}/")
            case "beat":
                return "beat: Starting..." in self.log(name)
        # A Celery worker, of calls or of anything else.
        return "ready." in self.log(name)


EMPTY_BROKER = "import os, redis; redis.Redis.from_url(os.environ['REDIS_URL']).flushall()"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def start_client(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    process = spawn([sys.executable, "-m", "benchmarks.client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(json.dumps(order).encode())
    process.stdin.close()
    process.stdin = None
    return process


def finish_client(process: subprocess.Popen[bytes], seconds: float) -> list[tuple[float, float, int, int]]:
    """Wait for the client and return (sent, answered, status, number of the request) of each."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        end([process], 1.0)
    if process.returncode:
        raise BenchmarkError("The client failed.")
    return [(sent, done, status, number) for sent, done, status, number in json.loads(output)]


def finish_watchers(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Close the browsers and return how many answers their pages got meanwhile."""
    try:
        output, _ = process.communicate(b"\n", timeout=seconds)
    finally:
        end([process], 1.0)
    if process.returncode:
        raise BenchmarkError("The browsers failed.")
    return int(output)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least this share does not exceed; NaN if there are no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def rounds(count: int, subjects: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Go through the subjects in turn, again and again: what disturbs the machine for a while disturbs all."""
    for number in range(1, count + 1):
        for subject in subjects:
            say(f"Run {number} of {count}: {subject}")
            yield number, subject
