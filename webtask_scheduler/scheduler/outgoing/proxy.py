"""Asks a proxy of the deployment for a way to an address: a second wall, which this service cannot open.

The way is a tunnel (CONNECT) for http too, so that what the proxy says is never taken for the receiver's answer. The
proxy is told the address that was checked, not the name, which it might find elsewhere.
"""

import base64
import socket
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from webtask_scheduler.scheduler.outgoing.errors import CallError, LocalError
from webtask_scheduler.scheduler.outgoing.reading import read_answer

# How a proxy says that it does not want to, rather than that it cannot: smokescreen says 407.
_UNWILLING = frozenset({403, 407})
UNREACHABLE = "The proxy of this service cannot be reached."


class Proxy(NamedTuple):
    """A proxy, and what it is shown: the value of Proxy-Authorization, or nothing."""

    host: str
    port: int
    authorization: str


def read_proxy(url: str) -> Proxy:
    """Return the proxy that a URL names. Raises ValueError, whose text does not show the URL's password."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or not port or parts.path not in ("", "/") or parts.query:
        raise ValueError("it must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    user, at, _ = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    pair = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
    return Proxy(parts.hostname, port, f"Basic {base64.b64encode(pair).decode()}" if at else "")


def open_tunnel(sock: socket.socket, proxy: Proxy, ip: str, port: int) -> None:
    """Have a proxy connect to an address, so that the socket leads there.

    Raises CallError if it refuses to, OSError if it cannot, LocalError if it answers no HTTP.
    """
    authority = f"[{ip.partition('%')[0]}]:{port}" if ":" in ip else f"{ip}:{port}"
    head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"
    if proxy.authorization:
        head += f"Proxy-Authorization: {proxy.authorization}\r\n"
    sock.sendall(f"{head}\r\n".encode())
    try:
        # Like the answer to HEAD, that to CONNECT has no body, where it is a success; others end the connection.
        answer = read_answer(sock.recv, method="HEAD", body_limit=0)
    except CallError as error:
        raise LocalError("The proxy of this service does not answer as a proxy does.") from error
    if answer.status_code in _UNWILLING:
        raise CallError("refused", f"The proxy of this service refuses this call ({answer.status_code}).")
    if answer.status_code >= 300:  # noqa: PLR2004 - no success
        raise OSError(0, f"the proxy of this service answered {answer.status_code}")
    if answer.surplus:
        raise LocalError("The proxy of this service does not answer as a proxy does.")
