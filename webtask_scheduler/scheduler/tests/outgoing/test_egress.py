"""Nothing is connected to that a deployment does not allow, however it is written, found or redirected to."""

import functools
import ipaddress
import json
import re
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from webtask_scheduler.scheduler.outgoing import egress, machine, names
from webtask_scheduler.scheduler.outgoing.checks import check_url
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, LocalError, Request
from webtask_scheduler.scheduler.outgoing.egress import Egress, EntryError, RefusedError
from webtask_scheduler.scheduler.outgoing.machine import Machine
from webtask_scheduler.scheduler.tests.support.apart import run_apart
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.receiver import Receiver
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

# IANA's special-purpose address registries, all rows: block, name, globally reachable. Written down by hand, see
# https://www.iana.org/assignments/iana-ipv4-special-registry/ and .../iana-ipv6-special-registry/, as of the date that
# `egress.REGISTRY_DATE` names. Nothing of the code's table is in here.
REGISTRY = """
0.0.0.0/8          This network                             False
0.0.0.0/32         This host on this network                False
10.0.0.0/8         Private-Use                              False
100.64.0.0/10      Shared Address Space                     False
127.0.0.0/8        Loopback                                 False
169.254.0.0/16     Link Local                               False
172.16.0.0/12      Private-Use                              False
192.0.0.0/24       IETF Protocol Assignments                False
192.0.0.0/29       IPv4 Service Continuity Prefix           False
192.0.0.8/32       IPv4 dummy address                       False
192.0.0.9/32       Port Control Protocol Anycast            True
192.0.0.10/32      Traversal Using Relays around NAT        True
192.0.0.170/32     NAT64/DNS64 Discovery                    False
192.0.0.171/32     NAT64/DNS64 Discovery                    False
192.0.2.0/24       Documentation (TEST-NET-1)               False
192.31.196.0/24    AS112-v4                                 True
192.52.193.0/24    AMT                                      True
192.88.99.0/24     Deprecated (6to4 Relay Anycast)          N/A
192.88.99.2/32     6a44-relay anycast address               False
192.168.0.0/16     Private-Use                              False
192.175.48.0/24    Direct Delegation AS112 Service          True
198.18.0.0/15      Benchmarking                             False
198.51.100.0/24    Documentation (TEST-NET-2)               False
203.0.113.0/24     Documentation (TEST-NET-3)               False
240.0.0.0/4        Reserved                                 False
255.255.255.255/32 Limited Broadcast                        False
::1/128            Loopback Address                         False
::/128             Unspecified Address                      False
::ffff:0:0/96      IPv4-mapped Address                      False
64:ff9b::/96       IPv4-IPv6 Translation                    True
64:ff9b:1::/48     IPv4-IPv6 Translation                    False
100::/64           Discard-Only Address Block               False
100:0:0:1::/64     Dummy IPv6 Prefix                        False
2001::/23          IETF Protocol Assignments                False
2001::/32          TEREDO                                   N/A
2001:1::1/128      Port Control Protocol Anycast            True
2001:1::2/128      Traversal Using Relays around NAT        True
2001:1::3/128      DNS-SD Service Registration Anycast      True
2001:2::/48        Benchmarking                             False
2001:3::/32        AMT                                      True
2001:4:112::/48    AS112-v6                                 True
2001:10::/28       Deprecated (previously ORCHID)           N/A
2001:20::/28       ORCHIDv2                                 True
2001:30::/28       Drone Remote ID Protocol Entity Tags     True
2001:db8::/32      Documentation                            False
2002::/16          6to4                                     N/A
2620:4f:8000::/48  Direct Delegation AS112 Service          True
3fff::/20          Documentation                            False
5f00::/16          Segment Routing (SRv6) SIDs              False
fc00::/7           Unique-Local                             False
fe80::/10          Link-Local Unicast                       False
"""
ROWS = [
    (ipaddress.ip_network(found[1]), found[2])
    for line in REGISTRY.strip().splitlines()
    if (found := re.fullmatch(r"(\S+) +.*? +(True|False|N/A)", line))
]
# Refused although that registry does not say so.
BEYOND = {
    ipaddress.ip_network("224.0.0.0/4"): "multicast has a registry of its own",
    ipaddress.ip_network("168.63.129.16/32"): "Azure's agent has a public address",
    ipaddress.ip_network("64:ff9b::/96"): "reaches what the IPv4 address in it does",
}
UNICAST = ipaddress.ip_network("2000::/3")


@functools.cache
def is_forbidden(address):
    """Return what the registries and the library say, all in the strictest reading."""
    if any(address in network for network, reachable in ROWS if reachable != "True"):
        return True
    if any(address in network for network in BEYOND) or address.is_multicast or not address.is_global:
        return True
    if address.version == 4:
        return False
    # ISATAP: an interface that is named by its IPv4 address.
    return address not in UNICAST or address.packed[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe")


NOWHERE = Machine(read=list)
STRICT = Egress(machine=NOWHERE)


def of(text, family=None):
    """Return one address as getaddrinfo does."""
    address = ipaddress.ip_address(text)
    family = family or (socket.AF_INET if address.version == 4 else socket.AF_INET6)
    end = () if family == socket.AF_INET else (0, 0)
    return family, socket.SOCK_STREAM, 6, "", (str(address), 0, *end)


def written_as_number(host, port, **fields):
    """Stand for a resolver without servers: it reads each spelling of an address that the system's reads."""
    return socket.getaddrinfo(host, port, **fields | {"flags": socket.AI_NUMERICHOST})


@contextmanager
def watched():
    """Record each address that is connected to, and connect to none."""
    opened = []

    def connect(_sock, address):
        opened.append(address[0])
        raise ConnectionRefusedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect)
        yield opened


def call(client, url, **fields):
    return client.call(Request(url=url, body=b"{}", timeout_seconds=5, **fields))


def failure(client, url, **fields):
    with pytest.raises(CallError) as caught:
        call(client, url, **fields)
    return caught.value


def refuses(guard, host, port=443):
    try:
        guard.check_target(host, port)
    except RefusedError:
        return True
    return False


# The table


def test_registry_was_read_whole():
    assert len(ROWS) == len(REGISTRY.strip().splitlines()) == 51


@each(("network", "reachable"), ROWS)
def test_every_row_of_the_registry_is_refused_unless_it_is_reachable_and_by_itself(network, reachable):
    within_others = any(
        network != other and network.subnet_of(other)
        for other, said in ROWS
        if other.version == network.version and said != "True"
    )
    expected = reachable != "True" or within_others or network in BEYOND
    for address in (network[0], network[-1], network[network.num_addresses // 2]):
        assert refuses(STRICT, str(address)) is expected
        assert is_forbidden(address) is expected


def test_every_row_of_the_table_has_a_word_a_reason_and_an_origin():
    for text, word, reason in egress.TABLE:
        network = ipaddress.ip_network(text)
        assert word in egress.WORDS
        assert reason
        # Its ends are refused by the reference too.
        assert is_forbidden(network[0]), text
        assert is_forbidden(network[-1]), text


BLOCKS = [network for network, _ in ROWS] + [*BEYOND, UNICAST] + [ipaddress.ip_network(row[0]) for row in egress.TABLE]
NEAR = [
    ipaddress.ip_address(number) if network.version == 4 else ipaddress.IPv6Address(number)
    for network in BLOCKS
    for number in (int(network[0]) - 1, int(network[0]), int(network[-1]), int(network[-1]) + 1)
    if 0 <= number < 2**network.max_prefixlen
]
ADDRESSES = st.one_of(
    st.sampled_from(NEAR),
    st.sampled_from(BLOCKS).flatmap(lambda network: st.ip_addresses(network=network)),
    st.ip_addresses(v=4),
    st.ip_addresses(network="2000::/3"),
    st.ip_addresses(v=6),
)


def test_the_guard_refuses_what_the_registries_refuse_on_both_sides_of_each_end():
    for address in NEAR:
        _guard_and_reference_agree(address)


@settings(max_examples=1000, deadline=None)
@given(ADDRESSES)
def test_the_guard_refuses_what_the_registries_refuse_and_nothing_else(address):
    _guard_and_reference_agree(address)


def _guard_and_reference_agree(address):
    assert refuses(STRICT, str(address)) is is_forbidden(address)
    found = [of(address)]
    plain = [(*one[:3], one[4]) for one in found]
    if is_forbidden(address):
        with pytest.raises(RefusedError) as caught:
            STRICT.check_found("a.example", 443, plain)
        # What was found is nobody's business.
        assert str(address) not in str(caught.value)
    else:
        STRICT.check_found("a.example", 443, plain)


# Spellings


def full_width(text):
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


def spellings(address):
    """Return hosts that the system's resolver, requests, or another reader takes for an address."""
    if address.version == 6:
        parts = [int.from_bytes(address.packed[n : n + 2]) for n in range(0, 16, 2)]
        mixed = ":".join(f"{part:x}" for part in parts[:6]) + ":" + ".".join(map(str, address.packed[12:]))
        bare = [str(address), address.exploded, str(address).upper(), mixed, f"{address}%25lo", f"{address}%lo"]
        return [f"[{one}]" for one in bare]
    number, (a, b, c, d) = int(address), address.packed
    plain = [
        str(address),
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"{a:#x}.0{b:o}.{c}.{d:#X}",
    ]
    others = [
        f"{address}.",
        f"{number}.",
        full_width(str(address)),
        str(address).replace(".", "。"),
        quote(str(address)).replace("1", "%31"),
        "".join(f"%{ord(letter):02X}" for letter in str(address)),
        f"me:secret@{address}",
        f"8.8.8.8@{address}",
        f"{address}:80",
        f"{number + 2**32}",
    ]
    return plain + others


def embedded(address):
    """Return the IPv6 addresses that hold an IPv4 address by one of the known schemes."""
    number = int(address)
    flipped = number ^ 0xFFFF_FFFF
    return [
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address(number),
        ipaddress.IPv6Address(0xFFFF << 48 | number),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b:1::")) | number),
        ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1),
        ipaddress.IPv6Address(0x20010000 << 96 | int(address) << 64 | flipped),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("2606:4700::5efe:0:0")) | number),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("2606:4700::200:5efe:0:0")) | number),
    ]


@pytest.fixture(scope="module")
def strict():
    return Client(callers=4, user_agent="test/1", egress=STRICT, getaddrinfo=written_as_number)


METADATA, PUBLIC = ipaddress.ip_address("169.254.169.254"), ipaddress.ip_address("93.184.216.34")


@settings(max_examples=400, deadline=None)
@example(METADATA)
@example(PUBLIC)
@example(ipaddress.ip_address("::1"))
@example(ipaddress.ip_address("2606:4700::1111"))
@given(ADDRESSES)
def test_no_spelling_leads_to_a_forbidden_address(strict, address):
    for host in spellings(address):
        with watched() as opened:
            found = failure(strict, f"http://{host}/")
        # Some are no addresses to the resolver; those that are lead to this one.
        assert found.kind in ("refused", "connect", "dns", "url"), host
        assert {ipaddress.ip_address(one) for one in opened} <= {address}, host
        if is_forbidden(address):
            assert (opened, found.kind == "connect") == ([], False), host
        elif host == str(address) or host == f"[{address}]":
            assert (len(opened), found.kind) == (1, "connect")
    # The plain ones are refused for good, and before anybody waits for a timer.
    if is_forbidden(address):
        for host in spellings(address)[:9] if address.version == 4 else spellings(address)[:4]:
            assert failure(strict, f"http://{host}/").permanent, host
            with pytest.raises(RefusedError):
                check_url(f"http://{host}/", max_length=2048, egress=STRICT)


@settings(max_examples=300, deadline=None)
@example(PUBLIC)
@given(st.ip_addresses(v=4))
def test_no_ipv4_address_is_called_inside_an_ipv6_one(strict, address):
    for inside in embedded(address):
        for host in (f"[{inside}]", f"[{inside.exploded}]"):
            with watched() as opened:
                found = failure(strict, f"http://{host}/")
            assert (opened, found.kind, found.permanent) == ([], "refused", True), host
        # Nothing allows them: what is inside could be anything.
        if inside not in (ipaddress.ip_address("::"), ipaddress.ip_address("::1")):
            allowing = Egress(allow="::/0 0.0.0.0/0 private loopback reserved", machine=NOWHERE)
            assert refuses(allowing, str(inside))


def test_address_inside_nat64_counts_where_that_is_set():
    guard = Egress(nat64=True, deny="9.9.9.9", machine=NOWHERE)
    assert not refuses(guard, "64:ff9b::808:808")
    for inside in ("64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::909:909", "64:ff9b:1::808:808"):
        assert refuses(guard, inside), inside
    assert refuses(Egress(nat64=True, deny="64:ff9b::/96", machine=NOWHERE), "64:ff9b::808:808")
    assert not refuses(Egress(nat64=True, allow="private", machine=NOWHERE), "64:ff9b::a00:1")


# Names


class Resolver:
    """Gives each name the answers that a test put here, in turn; the last one again and again."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def __call__(self, host, port, **_):
        self.asked.append(host)
        answers = self.answers[host.partition(".")[0]]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [of(address) for address in found]


def client_of(resolver, *, allow="", deny=""):
    return Client(
        callers=4, user_agent="test/1", egress=Egress(allow=allow, deny=deny, machine=NOWHERE), getaddrinfo=resolver
    )


@pytest.fixture(scope="module")
def answering():
    """A client, and a function that returns a new name for a list of addresses."""
    resolver = Resolver()

    def answer(addresses):
        name = f"name{len(resolver.answers)}"
        resolver.answers[name] = [addresses]
        return f"{name}.example"

    return client_of(resolver), answer


@settings(max_examples=1000, deadline=None)
@given(st.lists(ADDRESSES, min_size=1, max_size=6))
def test_one_bad_address_of_an_answer_keeps_all_from_being_connected_to(answering, addresses):
    client, answer = answering
    # A name of its own, because answers are remembered for a while.
    with watched() as opened:
        found = failure(client, f"http://{answer(addresses)}/")
    if any(map(is_forbidden, addresses)):
        assert (opened, found.kind, found.permanent) == ([], "refused", False)
        assert re.fullmatch(r"The host's name leads to an address that this service does not call \(.+\)\.", str(found))
    else:
        assert (opened, found.kind) == ([str(address) for address in addresses], "connect")


def test_answer_of_an_unknown_family_is_refused():
    odd = (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("/run/socket", 0))
    client = Client(callers=1, user_agent="t", egress=STRICT, getaddrinfo=lambda *_, **__: [of("8.8.8.8"), odd])
    with watched() as opened:
        assert (failure(client, "http://name.example/").kind, opened) == ("refused", [])


@pytest.fixture
def hidden():
    """A server that may not be reached: it counts who connects. On a loopback address of its own, at a given port."""
    listeners, accepted = [], []

    def listen(port):
        listener = socket.create_server(("127.0.0.2", port))
        listener.settimeout(0)
        listeners.append(listener)

    def arrivals():
        for listener in listeners:
            with suppress(BlockingIOError):
                accepted.append(listener.accept())
        return len(accepted)

    listen.arrivals = arrivals
    yield listen
    for one in (*listeners, *(connection for connection, _ in accepted)):
        one.close()


def test_name_that_is_bound_anew_leads_nowhere_else(receiver, hidden, monkeypatch):
    monkeypatch.setattr(names, "FRESH_SECONDS", 0.0)
    hidden(receiver.port)
    resolver = Resolver(name=[["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.1"]])
    client = client_of(resolver, allow="127.0.0.1")
    url = f"http://name.example:{receiver.port}/"
    # One look-up, one check, and the connection goes to what was checked, as does every call over it.
    for _ in range(3):
        assert call(client, url).status_code == 200
    assert (len(resolver.asked), len({seen.connection for seen in receiver.calls})) == (1, 1)
    wait_until(lambda: client.open_connections == 0)
    # The next connection is another matter: a bad answer, a mixed one, and then a good one again.
    for _ in range(2):
        found = failure(client, url)
        assert (found.kind, found.permanent) == ("refused", False)
        assert "127." not in str(found)
    assert (hidden.arrivals(), len(receiver.calls), client.open_connections) == (0, 3, 0)
    assert call(client, url).status_code == 200
    assert (hidden.arrivals(), len(resolver.asked)) == (0, 4)


def test_kept_connection_is_of_its_name_alone(receiver, hidden):
    """A name that may be called does not lend its connection to one that may not."""
    resolver = Resolver(good=[["127.0.0.1"]], bad=[["127.0.0.1"]])
    client = client_of(resolver, allow="good.example")
    assert call(client, f"http://good.example:{receiver.port}/").status_code == 200
    assert failure(client, f"http://bad.example:{receiver.port}/").kind == "refused"
    assert len(receiver.calls) == 1


# Redirects


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "http://127.2:{port}/",
        "http://0x7f000002:{port}/",
        "http://[::ffff:127.0.0.2]:{port}/",
        "//127.0.0.2:{port}/",
        "http://me@127.0.0.2:{port}/",
        "http://bad.example:{port}/",
        "http://mixed.example:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://good.example:6379/",
        "http://denied.example:{port}/",
    ],
)
def test_redirect_meets_the_same_wall(receiver, hidden, location):
    hidden(receiver.port)
    resolver = Resolver(
        good=[["127.0.0.1"]], bad=[["127.0.0.2"]], mixed=[["127.0.0.1", "127.0.0.2"]], denied=[["127.0.0.1"]]
    )
    client = client_of(resolver, allow="127.0.0.1", deny="denied.example")
    found = failure(client, receiver.redirect(307, location.format(port=receiver.port)), redirects=3)
    # The receiver may redirect elsewhere the next time.
    assert (found.kind, found.permanent) == ("refused", False)
    assert (hidden.arrivals(), len(receiver.calls)) == (0, 1)
    # The wall is behind any number of hops.
    twice = receiver.redirect(307, receiver.redirect(302, location.format(port=receiver.port)))
    assert failure(client, twice, redirects=3).kind == "refused"
    assert (hidden.arrivals(), len(receiver.calls)) == (0, 3)


# Own addresses


def test_own_addresses_and_networks_are_those_of_the_system():
    known = Machine()
    for address in [one for found in psutil.net_if_addrs().values() for one in found]:
        if address.family not in (socket.AF_INET, socket.AF_INET6) or not address.netmask:
            continue
        own = ipaddress.ip_interface(f"{address.address.partition('%')[0]}/{_length(address.netmask)}")
        assert known.find(own.version, int(own.ip)) == "this-machine"
        if own.network.num_addresses > 4 and not own.is_loopback:
            assert known.find(own.version, int(own.network[1])) in ("on-link", "this-machine")
    assert known.find(4, int(PUBLIC)) == ""


def _length(netmask):
    return int(ipaddress.ip_address(netmask)).bit_count()


OWN = """
import json
from webtask_scheduler.scheduler.outgoing.egress import Egress, RefusedError
found = {}
for allow in ("", "93.184.216.0/24", "this-machine", "on-link", "93.184.216.34", "this-machine on-link"):
    guard = Egress(allow=allow)
    for host in ("93.184.216.34", "93.184.216.99", "93.184.217.1", "2606:4700::1", "2606:4700::2", "198.99.0.1"):
        try:
            guard.check_target(host, 80)
        except RefusedError as error:
            found.setdefault(allow, []).append([host, str(error).partition(" (")[2].partition(")")[0]])
print(json.dumps(found))
"""


def test_public_addresses_of_this_machine_and_beside_it_are_refused():
    setup = (
        "ip address add 93.184.216.34/24 dev lo",
        "ip -6 address add 2606:4700::1/64 dev lo nodad",
        # A tunnel that takes half of the world is not a network that the machine is on.
        "ip route add 128.0.0.0/1 dev lo",
    )
    own, beside = "this service's own machine", "a network of this service's own machine"
    # On loopback, the whole network is local.
    found = json.loads(run_apart(OWN, *setup))
    v4, v6 = [["93.184.216.34", own], ["93.184.216.99", own]], [["2606:4700::1", own], ["2606:4700::2", beside]]
    assert found[""] == found["93.184.216.0/24"] == v4 + v6
    assert found["93.184.216.34"] == v4[1:] + v6
    assert found["this-machine"] == [v6[1]]
    assert found["on-link"] == v4 + v6[:1]
    assert "this-machine on-link" not in found


def test_addresses_are_read_again_after_a_while(monkeypatch):
    answers = [[(ipaddress.ip_network("8.8.8.8"), "this-machine")], [(ipaddress.ip_network("9.9.9.9"), "this-machine")]]
    guard = Egress(machine=Machine(read=lambda: answers.pop(0) if len(answers) > 1 else answers[0]))
    assert [refuses(guard, host) for host in ("8.8.8.8", "9.9.9.9")] == [True, False]
    monkeypatch.setattr(machine, "REFRESH_SECONDS", 0.0)
    guard._machine._next = 0.0
    assert refuses(guard, "9.9.9.9")
    assert len(answers) == 1


def test_lack_of_descriptors_keeps_what_is_known_and_is_no_refusal():
    def read():
        raise OSError(24, "Too many open files")

    known = Machine(read=lambda: [(ipaddress.ip_network("8.8.8.8"), "this-machine")])
    guard = Egress(machine=known)
    assert refuses(guard, "8.8.8.8")
    known._read, known._next = read, 0.0
    assert refuses(guard, "8.8.8.8")
    client = Client(callers=1, user_agent="t", egress=Egress(machine=Machine(read=read)))
    with watched() as opened, pytest.raises(LocalError):
        call(client, "http://8.8.8.8/")
    assert opened == []


def test_system_without_netlink_still_knows_what_it_sends_from(monkeypatch, caplog):
    monkeypatch.delattr(socket, "AF_NETLINK")
    monkeypatch.setattr(machine, "_incomplete", type(machine._incomplete)())
    monkeypatch.setattr(socket.socket, "connect", lambda sock, _: sock.bind(("127.0.0.1", 0)))
    assert (ipaddress.ip_network("127.0.0.1"), "this-machine") in machine.read_system()
    machine.read_system()
    assert [record.getMessage().split()[0] for record in caplog.records] == ["own_addresses_incomplete"]


# Ports, and what a deployment allows and denies


@each("port", [25, 110, 143, 465, 587, 6379, 5432, 11211, 22, 3306, 2375, 27017])
@each("host", ["8.8.8.8", "name.example", "[2606:4700::1111]"])
def test_ports_of_other_protocols_are_refused_before_anything_is_looked_up(host, port):
    resolver = Resolver()
    with watched() as opened:
        found = failure(client_of(resolver), f"http://{host}:{port}/")
    assert (found.kind, found.permanent, opened, resolver.asked) == ("refused", True, [], [])
    assert f"port {port}" in str(found)
    for scheme in ("http", "https"):
        with pytest.raises(RefusedError):
            check_url(f"{scheme}://{host}:{port}/", max_length=2048, egress=STRICT)


def test_ports_of_the_web_and_the_upper_ones_are_called():
    for port in (80, 443, 3000, 5000, 8000, 8080, 8443, 9000, *range(32768, 61000, 97)):
        assert not refuses(STRICT, "8.8.8.8", port)
    assert set(egress.PORTS) < set(range(1, 65536))


@each(
    "case",
    [
        # Allowed, denied, host, port, what its name leads to, and whether it is called. Words, networks, addresses.
        ("private", "", "10.1.2.3", 80, [], True),
        ("private", "", "127.0.0.1", 80, [], False),
        ("10.1.0.0/16", "", "10.1.2.3", 80, [], True),
        ("10.1.0.0/16", "", "10.2.2.3", 80, [], False),
        ("[fd00::/8]:8000-8080", "", "fd00::1", 8010, [], True),
        ("[fd00::/8]:8000-8080", "", "fd00::1", 8090, [], False),
        ("fd00::/8, 10.0.0.0/8", "", "name.example", 80, ["fd00::1", "10.0.0.1"], True),
        # What takes a name of its own to be allowed.
        ("link-local", "", "169.254.169.254", 80, [], False),
        ("0.0.0.0/0", "", "169.254.169.254", 80, [], False),
        ("169.254.0.0/16", "", "169.254.1.1", 80, [], True),
        ("169.254.169.254", "", "169.254.169.254", 80, [], True),
        ("metadata", "", "169.254.169.254", 80, [], True),
        ("private", "", "fd00:ec2::254", 80, [], False),
        # Hosts: their owner chooses the address, within limits.
        ("inside.example", "", "inside.example", 80, ["10.0.0.1"], True),
        ("Inside.Example", "", "INSIDE.example.", 80, ["10.0.0.1"], True),
        ("inside.example", "", "a.inside.example", 80, ["10.0.0.1"], False),
        ("*.inside.example", "", "a.b.inside.example", 80, ["10.0.0.1"], True),
        ("*.inside.example", "", "inside.example", 80, ["10.0.0.1"], False),
        ("*.inside.example", "", "ainside.example", 80, ["10.0.0.1"], False),
        ("bücher.example", "", "xn--bcher-kva.example", 80, ["10.0.0.1"], True),
        ("inside.example", "", "inside.example", 80, ["169.254.169.254"], False),
        ("inside.example", "", "inside.example", 80, ["::ffff:10.0.0.1"], False),
        ("inside.example", "", "inside.example", 80, ["224.0.0.1"], False),
        ("inside.example:81", "", "inside.example", 80, ["10.0.0.1"], False),
        # Ports: an entry allows those that it names, and no address by a port alone.
        ("10.0.0.0/8", "", "10.0.0.1", 5432, [], False),
        ("10.0.0.0/8:5432", "", "10.0.0.1", 5432, [], True),
        ("10.0.0.0/8:5432", "", "name.example", 5432, ["10.0.0.1"], True),
        ("10.0.0.0/8:5432", "", "name.example", 5432, ["8.8.8.8"], False),
        ("private:5432", "", "name.example", 5432, ["10.0.0.1"], True),
        (":5432", "", "8.8.8.8", 5432, [], True),
        (":5432", "", "10.0.0.1", 5432, [], False),
        ("name.example:25", "", "name.example", 25, ["8.8.8.8"], True),
        ("name.example", "", "name.example", 25, ["8.8.8.8"], False),
        # What is denied wins.
        ("", "8.8.8.0/24", "8.8.8.8", 80, [], False),
        ("8.8.8.8", "8.8.8.0/24", "8.8.8.8", 80, [], False),
        ("", "8.8.8.0/24", "name.example", 80, ["9.9.9.9", "8.8.8.8"], False),
        ("", "*.rival.example", "a.rival.example", 80, ["9.9.9.9"], False),
        ("", "*.rival.example", "rival.example", 80, ["9.9.9.9"], True),
        ("", "rival.example:8000-8999", "rival.example", 8500, ["9.9.9.9"], False),
        ("", "rival.example:8000-8999", "rival.example", 80, ["9.9.9.9"], True),
        ("", ":80", "name.example", 80, ["9.9.9.9"], False),
        ("", ":80", "name.example", 443, ["9.9.9.9"], True),
        ("private", "10.0.0.0/8", "192.168.0.1", 80, [], True),
        ("10.0.0.0/8", "private", "10.0.0.1", 80, [], False),
    ],
)
def test_what_is_allowed_and_denied(case):
    allow, deny, host, port, found, called = case
    resolver = Resolver(**{host.partition(".")[0].lower(): [found]})
    with watched() as opened:
        written = f"[{host}]" if ":" in host else host
        error = failure(client_of(resolver, allow=allow, deny=deny), f"http://{written}:{port}/")
    assert error.kind == ("connect" if called else "refused"), error
    assert opened == ((found or [host]) if called else [])


@each(
    ("entry", "why"),
    [
        ("10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("10.0.0.0/33", "no address or network"),
        ("127.1", "no address or network"),
        ("0x7f.1", "no host"),
        ("2130706433", "no address or network"),
        ("[10.0.0.0/8]", "no address or network"),
        ("[fd00::/8", "is not WHAT"),
        ("[fd00::/8]x", "is not WHAT"),
        ("fd00::1/8", "did you mean fd00::/8?"),
        ("*", "no host"),
        ("*.", "no host"),
        ("a.*.example", "no host"),
        ("http://a.example", "is not WHAT"),
        ("a.example/path", "no host"),
        ("a..example", "no host"),
        ("a.example:", "is not WHAT"),
        ("a.example:http", "is not WHAT"),
        ("a.example:0", "bad ports"),
        ("a.example:65536", "bad ports"),
        ("a.example:90-80", "bad ports"),
        (":", "is not WHAT"),
        ("embedded", "never called"),
    ],
)
def test_entry_that_is_not_valid_is_named(entry, why):
    with pytest.raises(EntryError, match=re.escape(why)) as caught:
        egress.read_entries(f"private, {entry} 10.0.0.0/8")
    assert repr(entry) in str(caught.value)


def test_entries_stand_between_commas_and_spaces():
    assert len(egress.read_entries(" private,10.0.0.0/8 ,, :25\n*.a.example:1-2\tlocalhost ")) == 5
    assert egress.read_entries("") == ()


# Proxies


def test_proxies_of_the_environment_are_ignored(receiver, monkeypatch):
    with Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        monkeypatch.setenv("no_proxy", "")
        client = client_of(Resolver(name=[["127.0.0.1"]]), allow="127.0.0.1")
        assert call(client, f"http://name.example:{receiver.port}/").status_code == 200
        assert (len(receiver.calls), proxy.calls) == (1, [])


class Tunnels:
    """A proxy that opens tunnels; asked for port 403, 407 or 502 it answers so, and `nonsense` to port 1."""

    def __init__(self):
        self.heads = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):
            while True:
                threading.Thread(target=self._open, args=(self._server.accept()[0],), daemon=True).start()

    def _open(self, near):
        with near, suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += near.recv(1024)
            self.heads.append(head.decode().splitlines())
            host, _, port = head.split()[1].decode().rpartition(":")
            if port == "1":
                near.sendall(b"220 mail.example ESMTP\r\n")
            elif port in ("403", "407", "502"):
                near.sendall(f"HTTP/1.1 {port} No\r\nContent-Length: 2\r\n\r\nno".encode())
            else:
                with socket.create_connection((host.strip("[]"), int(port))) as far:
                    near.sendall(b"HTTP/1.0 200 Connection established\r\n\r\n")
                    threading.Thread(target=self._pass, args=(far, near), daemon=True).start()
                    self._pass(near, far)

    def _pass(self, one, other):
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def close(self):
        self._server.close()


@pytest.fixture
def tunnels():
    running = Tunnels()
    yield running
    running.close()


def client_by(port, resolver, *, allow="127.0.0.1", user="", **fields):
    guard = Egress(allow=allow, machine=NOWHERE)
    url = f"http://{user}127.0.0.1:{port}"
    return Client(callers=2, user_agent="t", egress=guard, proxy=url, getaddrinfo=resolver, **fields)


def test_calls_go_through_a_proxy_that_is_told_the_checked_address(receiver, tunnels):
    client = client_by(tunnels.port, Resolver(name=[["127.0.0.1"]]), user="me:secret@")
    url = f"http://name.example:{receiver.port}/"
    for _ in range(3):
        assert call(client, url).status_code == 200
    # One tunnel serves several calls, and the receiver sees what it always does.
    to = f"127.0.0.1:{receiver.port}"
    assert tunnels.heads == [[f"CONNECT {to} HTTP/1.1", f"Host: {to}", "Proxy-Authorization: Basic bWU6c2VjcmV0", ""]]
    assert {seen.headers["Host"] for seen in receiver.calls} == {f"name.example:{receiver.port}"}
    assert not any("Proxy-Authorization" in seen.headers for seen in receiver.calls)


def test_certificate_is_checked_through_a_proxy_too(tunnels):
    pem = Path(__file__).parents[1] / "support" / "localhost.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with Receiver() as secure:
        secure._server.socket = context.wrap_socket(
            secure._server.socket, server_side=True, do_handshake_on_connect=False
        )
        resolver = Resolver(localhost=[["127.0.0.1"]], other=[["127.0.0.1"]])
        client = client_by(tunnels.port, resolver, ca_bundle=str(pem))
        assert call(client, f"https://localhost:{secure.port}/").status_code == 200
        assert failure(client, f"https://other.example:{secure.port}/").kind == "tls"
        assert len(secure.calls) == 1


def test_guard_stands_before_the_proxy(receiver, tunnels):
    resolver = Resolver(name=[["127.0.0.1", "127.0.0.2"]])
    client = client_by(tunnels.port, resolver)
    for host in ("name.example", "127.0.0.2", "169.254.169.254"):
        assert failure(client, f"http://{host}:{receiver.port}/").kind == "refused"
    assert (tunnels.heads, receiver.calls) == ([], [])


@pytest.mark.parametrize(("port", "kind"), [(403, "refused"), (407, "refused"), (502, "connect")])
def test_what_the_proxy_says_is_not_the_receivers_answer(tunnels, port, kind):
    found = failure(client_by(tunnels.port, Resolver()), f"http://127.0.0.1:{port}/")
    assert (found.kind, found.permanent, str(port) in str(found)) == (kind, False, True)


def test_proxy_that_is_away_or_is_none_is_not_the_receivers_failure(tunnels):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        away = gone.getsockname()[1]
    for client, port in ((client_by(away, Resolver()), 80), (client_by(tunnels.port, Resolver()), 1)):
        with pytest.raises(LocalError, match="proxy"):
            call(client, f"http://127.0.0.1:{port}/")
        assert client.open_connections == 0
