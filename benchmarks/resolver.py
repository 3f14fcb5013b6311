"""A name server for one process: some names have an address, the others are never answered.

A name server's port is always 53 and its address is in /etc/resolv.conf, so this takes two things that usually root
alone may do: to listen there, and to give a process a file system view of its own in which that file is another.
"""

import contextlib
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from benchmarks.receiver import address

# By RFC 6761 no such name exists elsewhere.
QUICK, HANGING = "quick-{}.invalid", "hanging-{}.invalid"
ADDRESSES = [f"127.0.53.{number}" for number in range(1, 20)]
# The longest that glibc knows: a query is not given up before the measurement ends.
PATIENT = "options timeout:30 attempts:5\n"
PRIVATE = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"']

TYPE_A = 1
ANSWERED = 0x8180


class ResolverError(Exception):
    """A private name server is not allowed to this account or on this system."""


class Resolver:
    """Answers the names of QUICK with one of some loopback addresses, and notes all names that were asked for.

    Raises ResolverError where that cannot be done.
    """

    def __init__(self, directory: Path, *, hosts: int) -> None:
        self.asked: set[str] = set()
        self._hosts = hosts
        self._socket = listen()
        file = directory / "resolv.conf"
        file.write_text(f"nameserver {self._socket.getsockname()[0]}\n{PATIENT}")
        # The prefix of a command that makes it use this name server.
        self.prefix = [*PRIVATE, str(file)]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        try:
            self._try()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Ends the thread too, which waits for a query.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _try(self) -> None:
        """Look a name up as a worker does: it may be that something else answers there, or nothing."""
        look_up = f"import socket; print(socket.gethostbyname({QUICK.format(0)!r}), end='')"
        try:
            done = subprocess.run(
                [*self.prefix, sys.executable, "-c", look_up], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ResolverError(str(error)) from error
        if done.stdout != address(0):
            raise ResolverError(done.stderr.strip()[-200:] or f"{QUICK.format(0)} is {done.stdout!r}")

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                query, sender = self._socket.recvfrom(512)
                if not query:
                    return
                name, kind, end = question(query)
                self.asked.add(name)
                if name.startswith("quick-"):
                    number = int(name.partition("-")[2].partition(".")[0])
                    self._socket.sendto(answer(query[:end], kind, address(number % self._hosts)), sender)


def listen() -> socket.socket:
    if shutil.which("unshare") is None:
        raise ResolverError("there is no `unshare`")
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for one in ADDRESSES:
        try:
            found.bind((one, 53))
        except PermissionError as error:
            found.close()
            raise ResolverError("port 53 is not for this account") from error
        except OSError:
            # Another benchmark listens there.
            continue
        return found
    found.close()
    raise ResolverError("every address of the benchmark is taken")


def question(query: bytes) -> tuple[str, int, int]:
    """Return the name and type that a query asks for, and where its question ends."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return ".".join(labels).lower(), kind, at + 5


def answer(query: bytes, kind: int, ip: str) -> bytes:
    """Return the answer to a query that was cut off after its question: the address if that was asked for."""
    found = kind == TYPE_A
    head = query[:2] + struct.pack("!HHHHH", ANSWERED, 1, int(found), 0, 0)
    # The name is a pointer to the one in the question.
    record = struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, 0, 4) + socket.inet_aton(ip)
    return head + query[12:] + (record if found else b"")
