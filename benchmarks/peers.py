"""Peers: stock django-celery-beat and procrastinate, newest releases, set up as their documentation says.

Each has an environment of its own in .cache/bench (procrastinate brings psycopg 3, and Django would silently switch to
it), made by the first run; delete it to have the releases of the day.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import rig
from benchmarks.firing import DUPLICATE_SECONDS, PATIENCE_SECONDS, WARM_SECONDS, Fired, Plan
from benchmarks.rig import BenchmarkError, Receiver, Site, Sites, say

STOCK_PACKAGES = ("django-celery-beat", "celery[redis]", "psycopg2-binary", "requests")
PROCRASTINATE_PACKAGES = ("procrastinate", "psycopg[binary]", "requests")
# As many calls at a time as one worker of ours makes.
PROCRASTINATE_CONCURRENCY = 32


def environment(name: str, packages: tuple[str, ...]) -> Path:
    """Return the Python of a virtual environment with the newest releases of these packages."""
    directory = rig.CACHE / f"venv-{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = directory / "bin" / "python"
    stamp = directory / "packages.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != list(packages):
        say(f"Installing the newest {', '.join(packages)} into {directory.relative_to(rig.ROOT)}")
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "install", *packages]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"The installation failed:\n{done.stderr[-2000:]}")
        stamp.write_text(json.dumps(list(packages)))
    return python


def versions(python: Path, packages: tuple[str, ...]) -> str:
    code = "import sys, importlib.metadata as m; print(' '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    names = [package.partition("[")[0] for package in packages]
    return subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.strip()


class Peer:
    """The base of both: a site, processes for the length of one run, and the wait for calls."""

    packages: tuple[str, ...]
    kind: str

    def __init__(self, sites: Sites, name: str) -> None:
        self.name = name
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.python = environment(self.kind, self.packages)
        self.versions = versions(self.python, self.packages)
        first = f"peer-{self.kind}"
        self.site: Site = sites.bare(first, django_settings="benchmarks.peer_stock.settings")
        if not self.site.query("SELECT 1 FROM pg_tables WHERE tablename = %s", self.marker):
            self.set_up()

    marker: str

    def set_up(self) -> None:
        raise NotImplementedError

    @property
    def processes(self) -> dict[str, str]:
        raise NotImplementedError

    @contextlib.contextmanager
    def running(self, processes: Mapping[str, str], ready: str) -> Iterator[None]:
        """Run commands and wait until the log of each says that it is ready."""
        logs = {name: self.site.directory / f"{name.replace(' ', '-')}.log" for name in processes}
        try:
            for name, words in processes.items():
                with logs[name].open("wb") as log:
                    self.started[name] = rig.spawn(
                        [str(self.python), *words.split()[1:]], log, env=self.site.environment
                    )
            deadline = time.monotonic() + rig.START_SECONDS
            for name in processes:
                while ready not in logs[name].read_text(errors="replace"):
                    if self.started[name].poll() is not None or time.monotonic() > deadline:
                        raise BenchmarkError(f"{name} did not come up:\n{logs[name].read_text()[-2000:]}")
                    time.sleep(rig.POLL_SECONDS)
            yield
        finally:
            rig.end([self.started.pop(name) for name in processes if name in self.started], 5.0)

    def watch(self, receiver: Receiver, plan: Plan, begin: float, patience: float) -> Fired:
        """Wait for the calls of a plan whose timers are stored and whose processes run."""
        if time.time() > begin + plan[0][0] - 0.5:
            raise BenchmarkError(f"{self.name}: the first timers were due before everything was up.")
        time.sleep(max(0.0, begin - time.time()))
        meter, spent = rig.Meter(), self.cpu_seconds()
        receiver.wait_for(len(plan), until=begin + max(offset for offset, _ in plan) + patience)
        machine = meter.read()
        cpu = {name: seconds - spent[name] for name, seconds in self.cpu_seconds().items()}
        time.sleep(DUPLICATE_SECONDS)
        return Fired(begin, receiver.take(), machine, cpu)

    def cpu_seconds(self) -> dict[str, float]:
        pids = {name: process.pid for name, process in self.started.items()}
        pids |= {"postgres": self.site.database.pid, "redis": self.site.broker.pid}
        return {name: rig.cpu_seconds(pid) for name, pid in pids.items()}

    def load(self, module: str, timers: list[tuple[float, str]]) -> None:
        self.site.run([str(self.python), "-m", module], data=timers, quiet=True)


class Stock(Peer):
    """Stock django-celery-beat and a plain prefork worker; everything is stored before beat starts."""

    kind = "stock"
    packages = STOCK_PACKAGES
    marker = "django_celery_beat_periodictask"

    def __init__(self, sites: Sites, name: str, *, waiting: int = 0) -> None:
        super().__init__(sites, name)
        self._waiting = waiting

    def set_up(self) -> None:
        self.site.run([str(self.python), "-m", "django", "migrate"], quiet=True)

    @property
    def processes(self) -> dict[str, str]:
        celery = "python -m celery -A benchmarks.peer_stock.app"
        return {
            "stock worker": f"{celery} worker -l INFO",
            "stock beat": f"{celery} beat -l INFO --pidfile= -S django_celery_beat.schedulers:DatabaseScheduler",
        }

    def fire(self, receiver: Receiver, plan: Plan, *, patience: float = PATIENCE_SECONDS) -> Fired:
        self.site.query("TRUNCATE django_celery_beat_periodictask, django_celery_beat_clockedschedule CASCADE")
        self.site.run([sys.executable, "-c", rig.EMPTY_BROKER], quiet=True)
        processes = self.processes
        with self.running({"stock worker": processes["stock worker"]}, "ready."):
            receiver.take()
            stored = len(plan) + self._waiting
            begin = time.time() + 15.0 + WARM_SECONDS + stored / 1000
            timers = [(begin + offset, receiver.url(path, number)) for number, (offset, path) in enumerate(plan)]
            # The rest comes due after this run, and soon enough for beat to load it: five minutes ahead.
            after = begin + max(offset for offset, _ in plan) + patience + 10
            span = max(1.0, begin + 290 - after)
            timers += [
                (after + span * number / self._waiting, receiver.url(f"/waiting/{number}"))
                for number in range(self._waiting)
            ]
            self.load("benchmarks.peer_stock.load", timers)
            with self.running({"stock beat": processes["stock beat"]}, "beat: Starting..."):
                return self.watch(receiver, plan, begin, patience)


class Procrastinate(Peer):
    """procrastinate with its own connector; its default poll, or a shorter one."""

    kind = "procrastinate"
    packages = PROCRASTINATE_PACKAGES
    marker = "procrastinate_jobs"

    def __init__(self, sites: Sites, name: str, *, poll_seconds: float | None = None) -> None:
        super().__init__(sites, name)
        self._poll_seconds = poll_seconds

    def set_up(self) -> None:
        schema = [str(self.python), "-m", "procrastinate", "--app=benchmarks.peer_procrastinate.app.app", "schema"]
        self.site.run([*schema, "--apply"], quiet=True)

    @property
    def processes(self) -> dict[str, str]:
        poll = f" --fetch-job-polling-interval={self._poll_seconds}" if self._poll_seconds else ""
        command = "python -m procrastinate --verbose --app=benchmarks.peer_procrastinate.app.app worker"
        return {self.name: f"{command} --concurrency={PROCRASTINATE_CONCURRENCY}{poll}"}

    def fire(self, receiver: Receiver, plan: Plan, *, patience: float = PATIENCE_SECONDS) -> Fired:
        self.site.query("TRUNCATE procrastinate_jobs CASCADE")
        with self.running(self.processes, "Starting worker"):
            receiver.take()
            begin = time.time() + 6.0 + WARM_SECONDS + len(plan) / 75
            self.load(
                "benchmarks.peer_procrastinate.load",
                [(begin + offset, receiver.url(path, number)) for number, (offset, path) in enumerate(plan)],
            )
            return self.watch(receiver, plan, begin, patience)
