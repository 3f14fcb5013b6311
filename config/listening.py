"""Whether an API without keys may be served: only where nobody but this machine reaches it."""

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping, Sequence

_IP = (socket.AF_INET, socket.AF_INET6)
MEANT = "yes-i-mean-it"


def is_loopback(host: str) -> bool:
    """Return whether an address or a name is this machine's own, whatever network it is in."""
    host = host.strip().strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def refuse_open(*, listens_on: str, published_on: str, meant: str) -> None:
    """End the process with one line unless an open API is reached by this machine alone, or is meant to be public.

    `published_on` counts in the place of `listens_on` where it is given: a container listens on all of its addresses,
    and its port is published on some of the machine's. An empty `listens_on` is not known.
    """
    if meant == MEANT or is_loopback(published_on or listens_on):
        return
    where = f"on {published_on or listens_on}" if published_on or listens_on else "where nobody says"
    print(
        f"WEBTASK_API_AUTH is 'open', and the web server listens {where}: whoever reaches it could have any URL called"
        " and read everything. Set WEBTASK_API_AUTH=key, or HOST=127.0.0.1; if only this machine reaches it all the"
        f" same, WEBTASK_PUBLISHED_ON=127.0.0.1; if it is to be public, WEBTASK_OPEN_ON_PUBLIC={MEANT}.",
        file=sys.stderr,
        flush=True,
    )
    sys.exit(os.EX_CONFIG)


def own_addresses() -> list[str]:
    """Return the addresses of this machine in the networks that it is in, as a URL has them; loopback is left out.

    None is looked up in a name server, which could take long.
    """
    try:
        # For a laptop; a server's image does not have it.
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return []
    given = [one for of_interface in psutil.net_if_addrs().values() for one in of_interface if one.family in _IP]
    hosts = [one.address.partition("%")[0] for one in given]
    return [f"[{host}]" if ":" in host else host for host in hosts if not is_loopback(host)]


def check(listens_on: str) -> None:
    """End the process with one line if its settings leave the API open, and others than this machine reach it there."""
    # Late: the settings use this module.
    from django.conf import settings

    if settings.WEBTASK_API_AUTH == "open":
        refuse_open(
            listens_on=listens_on,
            published_on=settings.WEBTASK_PUBLISHED_ON,
            meant=settings.WEBTASK_OPEN_ON_PUBLIC,
        )


def granian_host(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return where granian listens with these arguments."""
    host = environment.get("GRANIAN_HOST") or "127.0.0.1"
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--host":
            host = value if equals else "".join(words[index + 1 : index + 2])
        if name == "--uds":
            # Its file is for whoever may open it, such as a proxy of the whole network.
            return word
    return host


def runserver_host(words: Sequence[str]) -> str:
    """Return where Django's own server listens with these arguments."""
    given = next((word for word in words if not word.startswith("-")), "")
    if ":" not in given:
        return "127.0.0.1"
    # "0" is its short form of all addresses.
    return given.rpartition(":")[0]
