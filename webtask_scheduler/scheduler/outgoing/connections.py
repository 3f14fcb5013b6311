"""Makes connections within a deadline, keeps them for the next call, bounds their number, and closes idle ones.

The transport has the shape of `requests`: an adapter that sends a PreparedRequest and returns a Response. The
connections behind it are not urllib3's, for two reasons. An answer must be read strictly, and a connection closed
unless the answer was read to its exact end; http.client does not do that. And urllib3's layers take most of the
processor time of a call.
"""

import errno
import resource
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from requests import adapters, models
from requests.cookies import RequestsCookieJar
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util import ssl_ as urllib3_ssl

from webtask_scheduler.scheduler.outgoing.deadline import Deadline
from webtask_scheduler.scheduler.outgoing.egress import Egress, RefusedError
from webtask_scheduler.scheduler.outgoing.errors import CallError, LocalError, is_local
from webtask_scheduler.scheduler.outgoing.names import Address, Addresses, Names
from webtask_scheduler.scheduler.outgoing.prepared import Origin, Prepared
from webtask_scheduler.scheduler.outgoing.proxy import UNREACHABLE, Proxy, open_tunnel
from webtask_scheduler.scheduler.outgoing.reading import BROKEN_OFF, read_answer

# Connecting times out sooner than the whole call: a host that does not answer at all is not worth thirty seconds.
CONNECT_TIMEOUT_SECONDS = 10.0
# The most that is read of a body; the call does not wait for the rest.
BODY_LIMIT_BYTES = 64 * 1024
# A kept connection idle for longer is closed: common servers close theirs after two to five seconds, and a call
# written to a connection that is just being closed is a failed attempt.
IDLE_LIMIT_SECONDS = 1.5
# After a receiver sent something that is no answer, or more than one, its connections serve one call each for this
# long. Surplus bytes that come after the next request was sent cannot be told from its answer, so that answers of one
# timer would reach another.
DISTRUST_SECONDS = 600.0
DISTRUSTED_MOST = 10_000
# Descriptors left for databases, the broker, logs and libraries that open files.
DESCRIPTORS_FOR_OTHERS = 64
# A look-up holds one or two descriptors, a connection one.
LOOKUPS_MOST = 512
CONNECTIONS_MOST = 100_000


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of open files to its hard limit, and return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # An unlimited hard limit may be refused by the system; the soft one then stays as it is.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def shares_of_descriptors() -> tuple[int, int]:
    """Return how many connections and look-ups may be open at once under the limit of open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return CONNECTIONS_MOST, LOOKUPS_MOST
    free = max(8, limit - DESCRIPTORS_FOR_OTHERS)
    return min(CONNECTIONS_MOST, free * 3 // 4), max(1, min(LOOKUPS_MOST, free // 8))


class Connection:
    """A connected socket. Another thread may stop it."""

    __slots__ = ("_poll", "idle_since", "origin", "sock")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.sock: socket.socket | None = None
        self.idle_since = 0.0
        self._poll = select.poll()

    def stop(self) -> None:
        sock = self.sock
        if sock is not None:
            with suppress(OSError):
                # Not the method of an SSLSocket: it would drop the encryption under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def open(self, address: Address, port: int, deadline: Deadline) -> None:
        """Connect to an address. Raises LocalError, OSError, TimeoutError."""
        family, kind, protocol, (ip, _, *rest) = address
        self.sock = sock = socket.socket(family, kind, protocol)
        deadline.attach(self)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(min(CONNECT_TIMEOUT_SECONDS, deadline.remaining()))
        try:
            sock.connect((ip, port, *rest))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and _has_route(family, (ip, port, *rest)):
                raise LocalError("No local port is free for a connection.") from error
            raise
        # From here on, reads and writes block until the deadline's watchdog ends them. A timeout of the socket would
        # cost one more system call for each, and bound single reads only.
        sock.settimeout(None)
        self._poll.register(sock, select.POLLIN)

    def secure(self, tls: ssl.SSLContext, deadline: Deadline) -> None:
        """Shake hands. Raises CallError, TimeoutError, OSError of this machine."""
        host = self.origin.host.partition("%")[0].rstrip(".")
        plain = self.sock
        try:
            # The handshake comes after the socket is replaced, so that the watchdog can end it without another
            # descriptor.
            self.sock = sock = tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)  # type: ignore[arg-type]
            deadline.remaining()
            sock.do_handshake()
        except ssl.SSLError as error:
            raise CallError("tls", f"No secure connection: {error}"[:300]) from error
        except OSError as error:
            if deadline.ended_by or is_local(error):
                raise
            raise CallError("connection", BROKEN_OFF) from error

    def is_silent(self) -> bool:
        """Return whether nothing has come since the last answer: neither bytes nor the end of the connection."""
        return not self._poll.poll(0)

    def has_surplus(self) -> bool:
        """Return whether bytes have come that belong to no answer. Of TLS it is not known without reading them."""
        if self.sock is None or isinstance(self.sock, ssl.SSLSocket):
            return False
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def close(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            with suppress(OSError):
                sock.close()


def _has_route(family: int, address: tuple[Any, ...]) -> bool:
    """Return whether this machine has an address to connect from, apart from free ports."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
    except OSError:
        return False
    return True


class Connections:
    """All connections of a client: those in use, counted, and those that wait for their next call."""

    def __init__(
        self, *, most: int, kept_for_each: int, names: Names, egress: Egress, ca_bundle: str, proxy: Proxy | None
    ) -> None:
        self._most = most
        self._kept_for_each = kept_for_each
        self._names = names
        self._egress = egress
        self._proxy = proxy
        # One context for all, because reading the certificates of all authorities takes longer than a handshake. It
        # checks certificates and their names; here that does not depend on a library's default.
        self.tls = urllib3_ssl.create_urllib3_context()
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self.tls.verify_mode = ssl.CERT_REQUIRED
        self.tls.check_hostname = True
        self.tls.load_verify_locations(ca_bundle or DEFAULT_CA_BUNDLE_PATH)
        self.tls.set_alpn_protocols(["http/1.1"])
        self._lock = threading.Lock()
        self.open = 0
        # Idle connections: by origin, the latest last; and all of them, the oldest first.
        self._stacks: dict[Origin, list[Connection]] = {}
        self._idle: dict[Connection, None] = {}
        # Until when an origin's connections are not kept, the latest last.
        self._distrusted: dict[Origin, float] = {}

    def take(self, origin: Origin, deadline: Deadline) -> Connection:
        """Return a connection, attached to the deadline. Raises CallError, LocalError, TimeoutError."""
        while (kept := self._take_idle(origin)) is not None:
            if time.monotonic() - kept.idle_since < IDLE_LIMIT_SECONDS and kept.is_silent():
                try:
                    deadline.attach(kept)
                except TimeoutError:
                    deadline.detach()
                    self.close(kept)
                    raise
                return kept
            self._close_kept(kept)
        return self._connect(origin, deadline)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last answer was read to its exact end, for the next call."""
        connection.idle_since = time.monotonic()
        with self._lock:
            is_distrusted = self._distrusted.get(connection.origin, 0.0) > connection.idle_since
            stack = self._stacks.get(connection.origin, [])
            if not is_distrusted and len(stack) < self._kept_for_each:
                self._stacks[connection.origin] = stack
                stack.append(connection)
                self._idle[connection] = None
                return
        self.close(connection)

    def distrust(self, origin: Origin) -> None:
        """Keep no connection of an origin for a while; those that are kept now serve nobody."""
        with self._lock:
            self._distrusted.pop(origin, None)
            self._distrusted[origin] = time.monotonic() + DISTRUST_SECONDS
            if len(self._distrusted) > DISTRUSTED_MOST:
                del self._distrusted[next(iter(self._distrusted))]
        while (kept := self._take_idle(origin)) is not None:
            self.close(kept)

    def _close_kept(self, connection: Connection) -> None:
        """Close a connection that was kept, noting a receiver that sends more than answers."""
        if connection.has_surplus():
            self.distrust(connection.origin)
        self.close(connection)

    def close(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            self.open -= 1

    def close_idle(self) -> bool:
        """Close connections that were idle for too long; return whether others are still idle."""
        limit = time.monotonic() - IDLE_LIMIT_SECONDS
        while True:
            with self._lock:
                oldest = next(iter(self._idle), None)
                if oldest is None or oldest.idle_since > limit:
                    return oldest is not None
                self._forget(oldest)
            self._close_kept(oldest)

    def _take_idle(self, origin: Origin) -> Connection | None:
        with self._lock:
            stack = self._stacks.get(origin)
            if not stack:
                return None
            connection = stack[-1]
            self._forget(connection)
            return connection

    def _forget(self, connection: Connection) -> None:
        """Remove an idle connection. Called with the lock held."""
        del self._idle[connection]
        stack = self._stacks[connection.origin]
        if stack[-1] is connection:
            stack.pop()
        else:
            stack.remove(connection)
        if not stack:
            del self._stacks[connection.origin]

    def _close_oldest_idle(self) -> bool:
        with self._lock:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return False
            self._forget(oldest)
        self.close(oldest)
        return True

    def _connect(self, origin: Origin, deadline: Deadline) -> Connection:
        failure: OSError | None = None
        addresses, progress = self._resolve(origin, deadline), deadline.progress
        progress.resolved, progress.secured = time.monotonic(), 0.0
        for address in addresses:
            self._count_one_more()
            connection = Connection(origin)
            try:
                self._open(connection, address, deadline)
                progress.connected = time.monotonic()
                if origin.scheme == "https":
                    connection.secure(self.tls, deadline)
                    progress.secured = time.monotonic()
                # A connection that was stopped may look like an open one.
                deadline.remaining()
            except OSError as error:
                deadline.detach()
                self.close(connection)
                # Another address would not help.
                if deadline.ended_by or is_local(error):
                    raise
                failure = error
            except BaseException:
                deadline.detach()
                self.close(connection)
                raise
            else:
                return connection
        self._names.forget(origin.host)
        if isinstance(failure, TimeoutError):
            raise CallError("timeout", f"No connection within {CONNECT_TIMEOUT_SECONDS:g} s.") from failure
        raise CallError("connect", f"No connection: {getattr(failure, 'strerror', None) or 'refused'}.") from failure

    def _resolve(self, origin: Origin, deadline: Deadline) -> Addresses:
        """Return the addresses of an origin, all of which may be called. Raises as `take` does.

        Every connection is made to one of them, so those that are kept need no check of their own.
        """
        try:
            self._egress.check_target(origin.host, origin.port)
        except RefusedError as refused:
            raise CallError("refused", str(refused), permanent=True) from refused
        found = self._names.resolve(origin.host, deadline)
        try:
            self._egress.check_found(origin.host, origin.port, found)
        except RefusedError as refused:
            # Names change hands and addresses: a later call may do better.
            raise CallError("refused", str(refused)) from refused
        return found

    def _open(self, connection: Connection, address: Address, deadline: Deadline) -> None:
        while True:
            try:
                if self._proxy is None:
                    connection.open(address, connection.origin.port, deadline)
                else:
                    self._open_tunnel(connection, address, self._proxy, deadline)
            except OSError as error:
                # Others in this process may have taken more descriptors than are left to them.
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._close_oldest_idle():
                    continue
                raise
            return

    def _open_tunnel(self, connection: Connection, address: Address, proxy: Proxy, deadline: Deadline) -> None:
        """Connect to an address by way of a proxy. That one cannot be reached is not the receiver's failure."""
        try:
            hops = self._names.resolve(proxy.host, deadline)
        except CallError as error:
            raise LocalError(UNREACHABLE) from error
        for hop in hops:
            try:
                connection.open(hop, proxy.port, deadline)
            except OSError as error:
                connection.close()
                if deadline.ended_by or is_local(error):
                    raise
            else:
                break
        sock = connection.sock
        if sock is None:
            raise LocalError(UNREACHABLE)
        open_tunnel(sock, proxy, address[3][0], connection.origin.port)

    def _count_one_more(self) -> None:
        """Count one more connection. Raises LocalError if there are too many already."""
        while True:
            with self._lock:
                if self.open < self._most:
                    self.open += 1
                    return
            if not self._close_oldest_idle():
                raise LocalError(f"{self._most} connections are open; this process makes no more at once.")


class Received(models.Response):
    """A Response without the unused cookie jar and dates, which take as long to make as the rest."""

    cookies = RequestsCookieJar()
    raw = None
    encoding = None
    reason = ""
    _content_consumed = True

    def __init__(self, request: Prepared, status_code: int, headers: Mapping[str, str], body: bytes) -> None:
        self.request = request
        self.url = request.url or ""
        self.status_code = status_code
        # Keyed by names in lower case.
        self.headers = headers  # type: ignore[assignment]
        self._content = body


class Adapter(adapters.HTTPAdapter):
    """The transport: sends a Prepared and returns what was received, within the deadline of its call."""

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self._connections = connections

    def send(self, request: models.PreparedRequest, *_: Any, **__: Any) -> Received:
        """Send the request and return its answer; its deadline bounds all, and certificates are always checked.

        Other arguments are ignored. Raises CallError, LocalError, TimeoutError at the deadline, OSError.
        """
        if not isinstance(request, Prepared):
            raise TypeError("Only what `prepared.Preparer` made can be sent.")
        wire = request.wire()
        deadline = request.deadline
        progress = deadline.progress
        progress.first_byte = 0.0
        connection = self._connections.take(request.origin, deadline)
        reusable = False
        try:
            sock = connection.sock
            if sock is None:
                raise RuntimeError("The connection is closed.")
            try:
                sock.sendall(wire)
                sent = True
            except (BrokenPipeError, ConnectionResetError):
                # A receiver may answer before it has read everything, and hang up.
                sent = False

            def receive(size: int) -> bytes:
                piece = sock.recv(size)
                if not progress.first_byte:
                    progress.first_byte = time.monotonic()
                return piece

            answer = read_answer(receive, method=request.method or "", body_limit=BODY_LIMIT_BYTES)
            surplus = answer.surplus or bool(isinstance(sock, ssl.SSLSocket) and sock.pending())
            reusable = sent and answer.reusable and not surplus
            if surplus:
                self._connections.distrust(request.origin)
        except CallError as failure:
            if failure.kind == "protocol":
                self._connections.distrust(request.origin)
            raise
        finally:
            # Detached first: once given back, it may serve another call, which this call's deadline must not end.
            if deadline.detach() and reusable:
                self._connections.give_back(connection)
            else:
                self._connections.close(connection)
        return Received(request, answer.status_code, answer.headers, answer.body)
