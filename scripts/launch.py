"""Start the service on one machine, or a command beside throw-away servers. `scripts/run` and `scripts/test` call this.

    python -m scripts.launch run                        all processes under one supervisor, until Ctrl-C
    python -m scripts.launch process NAME               become one of those processes (the supervisor calls this)
    python -m scripts.launch with-servers COMMAND ...   the command, beside servers of its own that end with it

How `run` holds together: this process starts supervisord and stays beside it, showing the logs. supervisord runs every
other process and starts again whatever dies. When this process is asked to stop it asks supervisord, which stops web,
worker, beat and Flower together, then Redis, then PostgreSQL. When this process is killed, the kernel asks supervisord
in its stead. When supervisord is killed, this process ends what it left; when both are, the next run does. For that,
each process notes its number and its time of birth in .data/pid before it becomes what it is.
"""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import psutil  # type: ignore[import-untyped]

from scripts import processes, servers

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".data"
LOGS = DATA / "log"
PIDS = DATA / "pid"
CONFIG = DATA / "supervisor.conf"

# How long each may take to stop before it is killed. The four of the application stop together, so everything is down
# after at most 10 + 2 + 3 seconds. The worker waits for the calls that it is making.
STOP_SECONDS = {"web": 4, "worker": 10, "upkeep": 4, "beat": 4, "flower": 3, "redis": 2, "postgres": 3}
ALL_STOP_SECONDS = 15.0
START_SECONDS = 60.0
POLL_SECONDS = 0.1
# A process that ends within this many seconds of its start is started again after 1, 2, 3, ... seconds; one that ends
# later, at once. The number of times has no limit worth the name: a database may be away for long.
STEADY_SECONDS = 5
RETRIES = 1_000_000
LOG_BYTES = 5_000_000
LOG_BACKUPS = 2
# Longest path that a Unix socket may have; the shortest limit among systems, less supervisord's temporary suffix.
SOCKET_PATH_BYTES = 90


class Stop(Exception):  # noqa: N818
    """Raised when this process is asked to stop."""


# What there is to run


def setting(name: str, default: str) -> str:
    return os.environ.get(name) or default


def number(name: str, default: int, *, most: int = 1000) -> int:
    text = setting(name, str(default))
    if not text.isdigit() or not 1 <= int(text) <= most:
        sys.exit(f"{name} is {text!r}: it must be a number from 1 to {most}.")
    return int(text)


def names(kind: str, count: int) -> list[str]:
    return [kind] if count == 1 else [f"{kind}-{index}" for index in range(1, count + 1)]


def embedded() -> list[servers.Server]:
    """Return the servers that the environment does not bring, in the order in which they start."""
    found: list[servers.Server] = []
    if not os.environ.get("DATABASE_URL"):
        found.append(servers.Postgres(DATA / "postgres"))
    if not os.environ.get("REDIS_URL"):
        found.append(servers.Redis(DATA / "redis"))
    return found


def application() -> list[str]:
    """Return the names of our own processes."""
    # A delivery costs PostgreSQL as much as a worker: half of the processors each.
    workers = number("WORKERS", max(1, (os.cpu_count() or 1) // 2))
    flower = ["flower"] if shows_flower() else []
    return ["web", *names("worker", workers), "upkeep", *names("beat", number("BEATS", 1)), *flower]


def shows_flower() -> bool:
    """Return whether Flower runs: it lets no one in without a login where the API lets no one in without a key."""
    return setting("WEBTASK_API_AUTH", "open") != "key" or bool(setting("CELERY_FLOWER_PASSWORD", ""))


# Processes by number, and whether that number is still the same process


def remember(name: str) -> None:
    PIDS.mkdir(exist_ok=True)
    own = psutil.Process()
    servers.write_private(PIDS / name, json.dumps({"pid": own.pid, "born": own.create_time()}))


def remembered(name: str) -> list[psutil.Process]:
    """Return the live processes of the one last noted under this name: itself, and its group.

    The group outlives its leader, and no other process is given the leader's number while it does.
    """
    try:
        note = json.loads((PIDS / name).read_text())
    except (FileNotFoundError, ValueError):
        return []
    alive: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(note["pid"])
        # The clock behind birth times may be set, but by less than the time in which process numbers repeat.
        if abs(process.create_time() - note["born"]) > 5:  # noqa: PLR2004
            return []
        alive += [process] if is_alive(process) else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            same_group = process.pid != note["pid"] and os.getpgid(process.pid) == note["pid"]
            alive += [process] if same_group and is_alive(process) else []
    return alive


def is_alive(process: psutil.Process) -> bool:
    """Return whether it still runs. In some containers nothing collects orphans, so an ended one may stay listed."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end(processes: list[psutil.Process], how: signal.Signals, seconds: float) -> None:
    """Ask them to end, and use force after that time."""
    for asked, patience in ((how, seconds), (signal.SIGKILL, 2.0)):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(asked)
        deadline = time.monotonic() + patience
        while (processes := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
        if not processes:
            return


def end_leftovers(say: Callable[[str], None]) -> None:
    """End what a run left behind that was cut off, in the order in which it would have stopped."""
    noted = sorted(path.name for path in PIDS.glob("*") if not path.name.endswith(".new"))
    left = [name for name in noted if remembered(name)]
    if not left:
        return
    say(f"Ending what was left running: {', '.join(left)}")
    # A supervisor without its parent is stopping everything already; it must be gone first, or it starts things again.
    end(remembered("supervisor"), signal.SIGTERM, ALL_STOP_SECONDS)
    last = [servers.Redis.name, servers.Postgres.name]
    ours = [process for name in noted if name not in last for process in remembered(name)]
    end(ours, signal.SIGTERM, STOP_SECONDS["worker"])
    end(remembered(servers.Redis.name), servers.Redis.stop_signal, STOP_SECONDS["redis"])
    end(remembered(servers.Postgres.name), servers.Postgres.stop_signal, STOP_SECONDS["postgres"])


# Logs on the terminal


class Terminal:
    """Shows the end of every log file, a prefix before each line.

    It follows the files rather than standing between the processes and their logs, so that a terminal that is
    stopped, slow or gone never holds up the service.
    """

    def __init__(self, files: list[str]) -> None:
        self.width = max(map(len, files))
        self.files: dict[str, IO[bytes]] = {}
        self.names = files
        self.partial = dict.fromkeys(files, b"")
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                self.files[name] = self._path(name).open("rb")
                self.files[name].seek(0, os.SEEK_END)

    @staticmethod
    def _path(name: str) -> Path:
        return LOGS / f"{name}.log"

    def write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:
            # The terminal is gone. A signal follows if the service should stop; otherwise it goes on without it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def say(self, text: str) -> None:
        self.write(f"{'run':{self.width}} | {text}\n")

    def follow(self) -> None:
        """Show what has been written since the last call."""
        for name in self.names:
            if name in self.files:
                self._show(name)
                # When a log is full it is renamed and begun again: what was left of the old one has just been shown.
                with contextlib.suppress(FileNotFoundError):
                    if not os.path.samestat(os.fstat(self.files[name].fileno()), self._path(name).stat()):
                        self.files.pop(name).close()
            if name not in self.files:
                with contextlib.suppress(FileNotFoundError):
                    self.files[name] = self._path(name).open("rb")
                    self._show(name)

    def _show(self, name: str) -> None:
        *lines, self.partial[name] = (self.partial[name] + self.files[name].read()).split(b"\n")
        for line in lines:
            self.write(f"{name:{self.width}} | {line.decode(errors='replace')}\n")


# The run


def supervisor_config(socket_path: Path, password: str, own_servers: list[str], ours: list[str]) -> str:
    """Return supervisord's configuration. Its paths are relative to the checkout, so they need no quoting."""
    lines = [
        "[unix_http_server]",
        f"file={socket_path}",
        "chmod=0600",
        # The mode would do, but supervisord calls it critical when there is no password.
        "username=run",
        f"password={password}",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisord]",
        "nodaemon=true",
        "silent=true",
        "logfile=.data/log/supervisor.log",
        f"logfile_maxbytes={LOG_BYTES}",
        f"logfile_backups={LOG_BACKUPS}",
        "pidfile=.data/supervisor.pid",
        # Said outright, as supervisord wants it: root runs it only where root ran the script.
        *(["user=root"] if os.geteuid() == 0 else []),
    ]
    # The application is one group: supervisord stops group after group, and the members of one together.
    lines += ["[group:app]", f"programs={','.join(ours)}", "priority=30"]
    for priority, name in enumerate([*own_servers, *ours], start=10):
        kind = name.partition("-")[0]
        server_class = {"postgres": servers.Postgres, "redis": servers.Redis}.get(kind, servers.Server)
        lines += [
            f"[program:{name}]",
            f"command=.venv/bin/python -m scripts.launch process {name}",
            f"priority={priority}",
            # Ours wait for the migrations.
            f"autostart={'true' if name in own_servers else 'false'}",
            "autorestart=true",
            f"startsecs={1 if name in own_servers else STEADY_SECONDS}",
            f"startretries={RETRIES}",
            f"stopsignal={server_class.stop_signal.name.removeprefix('SIG')}",
            f"stopwaitsecs={STOP_SECONDS[kind]}",
            # The request to stop goes to the process alone, which tells its own children; force goes to them as well.
            "stopasgroup=false",
            f"killasgroup={'false' if name in own_servers else 'true'}",
            "redirect_stderr=true",
            f"stdout_logfile=.data/log/{name}.log",
            f"stdout_logfile_maxbytes={LOG_BYTES}",
            f"stdout_logfile_backups={LOG_BACKUPS}",
        ]
    return "\n".join(lines) + "\n"


def supervisor_rpc(socket_path: Path, password: str) -> xmlrpc.client.ServerProxy:
    from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

    return xmlrpc.client.ServerProxy(
        "http://localhost", transport=SupervisorTransport("run", password, serverurl=f"unix://{socket_path}")
    )


def check_ports() -> None:
    """Exit with one line if a port is taken."""
    number("WEB_WORKERS", 2)
    host = setting("HOST", "127.0.0.1")
    ports = {"PORT": number("PORT", 8000, most=65535), "FLOWER_PORT": number("FLOWER_PORT", 5555, most=65535)}
    if not shows_flower():
        del ports["FLOWER_PORT"]
    if len(set(ports.values())) < len(ports):
        sys.exit(f"PORT and FLOWER_PORT are both {ports['PORT']}: set one of them to another number.")
    for name, port in ports.items():
        try:
            free = servers.port_is_free(host, port)
        except PermissionError:
            sys.exit(f"Port {port} on {host} may not be used by this account: set {name} to a number above 1023.")
        except OSError as error:
            sys.exit(f"HOST is {host!r}, which is no address of this machine ({error.strerror}).")
        if not free:
            sys.exit(
                f"Port {port} on {host} is taken: set {name} to another one, as in {name}={port + 1} ./scripts/run"
            )


def own_data() -> None:
    """Make the directory for everything that a run keeps, readable for this account only."""
    DATA.mkdir(mode=0o700, exist_ok=True)
    if DATA.stat().st_uid != os.geteuid():
        sys.exit(f"{DATA} belongs to another account ({DATA.owner()}): run this as that one, or remove the directory.")
    DATA.chmod(0o700)
    LOGS.mkdir(exist_ok=True)
    PIDS.mkdir(exist_ok=True)


def lock() -> None:
    """Allow one run in one checkout. The lock ends with this process, however it ends."""
    descriptor = os.open(DATA / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("It is running already in this checkout; Ctrl-C in its terminal stops it.")


class Run:
    def __init__(self) -> None:
        self.servers = embedded()
        self.supervisor: subprocess.Popen[bytes] | None = None
        self.stopping = False
        self.application = application()
        self.terminal = Terminal(
            ["supervisor", "migrate", *(server.name for server in self.servers), *self.application]
        )
        self.say = self.terminal.say

    def __call__(self) -> int:
        try:
            self._listen()
            own_data()
            lock()
            end_leftovers(self.say)
            check_ports()
            with contextlib.ExitStack() as stack:
                self.socket = DATA / "supervisor.sock"
                if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES:
                    short = stack.enter_context(tempfile.TemporaryDirectory(prefix="webtask-"))
                    self.socket = Path(short) / "supervisor.sock"
                try:
                    self._start()
                    self._watch()
                finally:
                    self._finish()
        except Stop:
            self.say("Stopped")
            return 0
        except servers.ServerError as error:
            self.say(str(error))
        return 1

    def _listen(self) -> None:
        def ask_to_stop(signum: int, _: FrameType | None) -> None:
            # Once: a second Ctrl-C must not break off the orderly stop that the first began.
            if not self.stopping:
                self.stopping = True
                raise Stop(signal.Signals(signum).name)

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Started by nohup, it goes on when the terminal goes.
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, ask_to_stop)

    def _start(self) -> None:
        for server in self.servers:
            if not (server.directory / "data").exists() and isinstance(server, servers.Postgres):
                self.say("Making a PostgreSQL database in .data/postgres")
            server.prepare()
        urls = {server.name: server.url for server in self.servers}
        os.environ["DATABASE_URL"] = urls.get("postgres") or os.environ["DATABASE_URL"]
        os.environ["REDIS_URL"] = urls.get("redis") or os.environ["REDIS_URL"]
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.local")
        os.environ["PYTHONUNBUFFERED"] = "1"
        if shows_flower():
            os.environ.setdefault("WEBTASK_FLOWER_URL", flower_url())
        # For `manage.py` in another terminal.
        servers.write_private(
            DATA / "env", f"DATABASE_URL={os.environ['DATABASE_URL']}\nREDIS_URL={os.environ['REDIS_URL']}\n"
        )

        self.say(f"Starting {' and '.join(server.name for server in self.servers) or 'the supervisor'}")
        password = secrets.token_hex(16)
        own_servers = [server.name for server in self.servers]
        servers.write_private(CONFIG, supervisor_config(self.socket, password, own_servers, self.application))
        # In a session of its own, or Ctrl-C would reach it, and everything below it, directly and all at once.
        self.supervisor = subprocess.Popen(
            [sys.executable, "-m", "scripts.launch", "process", "supervisor"],
            cwd=ROOT,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for server in self.servers:
            self._wait(server.answers, START_SECONDS, f"{server.name} does not answer; see .data/log/{server.name}.log")

        self.say("Migrating the database")
        self._migrate()
        self.say(f"Starting web, worker, beat{' and Flower' if shows_flower() else ''}")
        if not shows_flower():
            self.say("Flower is not started: with WEBTASK_API_AUTH=key it needs CELERY_FLOWER_PASSWORD.")
        supervisor_rpc(self.socket, password).supervisor.startProcessGroup("app", False)
        if self._wait(self._web_answers, START_SECONDS):
            self.terminal.write(welcome())
        else:
            self.say(
                f"The web server does not answer {base_url()}/healthz yet; see .data/log/web.log. It is kept running."
            )

    def _migrate(self) -> None:
        # Another file, not the same one from its beginning: the terminal reads on where the last run's ended.
        (LOGS / "migrate.log").unlink(missing_ok=True)
        with (LOGS / "migrate.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "migrate", "--noinput"],
                cwd=ROOT,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(lambda: process.poll() is not None, float("inf"))
        finally:
            process.kill()
            process.wait()
        self.terminal.follow()
        if process.returncode == os.EX_CONFIG:
            # Its one line, said last: what the servers print while they stop comes in between.
            said = (LOGS / "migrate.log").read_text(errors="replace").strip()
            raise servers.ServerError(f"{said} Nothing was started.")
        if process.returncode:
            raise servers.ServerError("The database could not be migrated; see the lines above.")

    def _web_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{base_url()}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)  # noqa: PLR2004
        except (OSError, ValueError):
            return False

    def _wait(self, ready: Callable[[], bool], seconds: float, failure: str = "") -> bool:
        """Show the logs until it is ready; if it is not in time, fail with the message or return False."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.terminal.follow()
            if self.supervisor and self.supervisor.poll() is not None:
                raise servers.ServerError("The supervisor has ended; see .data/log/supervisor.log.")
            if time.monotonic() > deadline:
                if failure:
                    raise servers.ServerError(failure)
                return False
            time.sleep(POLL_SECONDS)
        self.terminal.follow()
        return True

    def _watch(self) -> None:
        self._wait(lambda: False, float("inf"))

    def _finish(self) -> None:
        self.stopping = True
        if self.supervisor:
            if self.supervisor.poll() is None:
                self.say("Stopping everything")
                self.supervisor.terminate()
                deadline = time.monotonic() + ALL_STOP_SECONDS
                while self.supervisor.poll() is None and time.monotonic() < deadline:
                    self.terminal.follow()
                    time.sleep(POLL_SECONDS)
            if self.supervisor.poll() is None:
                self.supervisor.kill()
                self.supervisor.wait()
        end_leftovers(self.say)
        shutil.rmtree(PIDS, ignore_errors=True)
        self.terminal.follow()


def base_url() -> str:
    host = setting("HOST", "127.0.0.1")
    # "Every address of this machine" is a place to listen, not one to call.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what others set is read
    return f"http://{f'[{host}]' if ':' in host else host}:{setting('PORT', '8000')}"


def flower_url() -> str:
    return f"{base_url().rpartition(':')[0]}:{setting('FLOWER_PORT', '5555')}"


def welcome() -> str:
    base = base_url()
    key, making = "", ""
    if setting("WEBTASK_API_AUTH", "open") == "key":
        key = '-H "Authorization: Bearer $KEY" '
        making = "\n    .venv/bin/python manage.py api_key create NAME --owner EMAIL    # the key for programs"
    admin = f"{base}/{setting('DJANGO_ADMIN_PATH', 'admin').strip('/')}"
    flower = f"\n    Flower     {flower_url()}" if shows_flower() else ""
    return f"""
  webtask_scheduler is running.

    Dashboard  {base}/
    API docs   {base}/api/docs
    Admin      {admin}/
    Tasks      {admin}/django_celery_beat/periodictask/{flower}

  An account for the admin, from another terminal:
    .venv/bin/python manage.py createsuperuser{making}

  A timer that fires in ten seconds; its receiver is part of the service, and shows what it got:
    curl -X POST {base}/timer {key}-H 'Content-Type: application/json' \\
      -d '{{"hours": 0, "minutes": 0, "seconds": 10, "web_url": "{base}/demo/receiver"}}'

  The logs below are kept in .data/log. Ctrl-C stops everything; the data stays in .data.

"""


def become(name: str) -> NoReturn:
    """Note who we are, end what is left of our predecessor, and turn into the process of that name."""
    if name == "supervisor":
        servers.die_with_parent(signal.SIGTERM)
        remember(name)
        os.execv(sys.executable, [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(CONFIG)])
    # Killed, web leaves its own children, which would go on answering with the old code on the same port.
    end(remembered(name), signal.SIGKILL, 1)
    remember(name)
    for server in (servers.Postgres(DATA / "postgres"), servers.Redis(DATA / "redis")):
        if server.name == name:
            server.run_in_foreground()
    processes.become(name)


def wind_up(command: subprocess.Popen[bytes]) -> int:
    """Wait for a command that was asked to stop. A SIGINT to us alone did not reach it: ask again, then use force."""
    for how in (signal.SIGINT, signal.SIGKILL):
        try:
            return command.wait(5 if how == signal.SIGINT else 10)
        except subprocess.TimeoutExpired:
            command.send_signal(how)
    return command.wait()


def with_servers(argv: list[str]) -> int:
    """Run the command with throw-away servers for those the environment does not bring; return its exit code."""
    environment = dict(os.environ)
    command: subprocess.Popen[bytes] | None = None
    stopping = False

    def ask_to_stop(signum: int, _: FrameType | None) -> None:
        nonlocal stopping
        if command is None:
            raise Stop(signal.Signals(signum).name)
        stopping = True
        # Ctrl-C reaches the command directly, and a second one would break off its clean-up.
        if signum != signal.SIGINT:
            command.send_signal(signal.SIGINT)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, ask_to_stop)

    try:
        with (
            tempfile.TemporaryDirectory(prefix="webtask-", ignore_cleanup_errors=True) as directory,
            contextlib.ExitStack() as stack,
        ):
            if not environment.get("DATABASE_URL"):
                database = servers.Postgres(Path(directory) / "postgres", throwaway=True)
                environment["DATABASE_URL"] = stack.enter_context(database).url
            if not environment.get("REDIS_URL"):
                environment["REDIS_URL"] = stack.enter_context(servers.Redis(Path(directory) / "redis")).url
            follow_us = functools.partial(servers.die_with_parent, signal.SIGINT)
            command = subprocess.Popen(argv, cwd=ROOT, env=environment, preexec_fn=follow_us)  # noqa: PLW1509
            code = None
            while code is None and not stopping:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = command.wait(1)
            code = wind_up(command) if code is None else code
            # Ended by a signal: the exit code that a shell would give.
            return code if code >= 0 else 128 - code
    except Stop:
        return 130
    except servers.ServerError as error:
        print(error, file=sys.stderr)
        return 1


def main() -> int:
    match sys.argv[1:]:
        case ["run"]:
            return Run()()
        case ["process", name]:
            become(name)
        case ["with-servers", *argv] if argv:
            return with_servers(argv)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
