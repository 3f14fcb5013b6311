"""Every spelling of a host is one host: in the column, in call stops, in filters, and after the migration."""

import importlib
import ipaddress
import time

import pytest
from django.core.management import call_command
from django.db import connection
from hypothesis import example, given
from hypothesis import strategies as st

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.admin import lists as admin_lists
from webtask_scheduler.scheduler.models import CallStop, State, Timer
from webtask_scheduler.scheduler.queue.attempts import start_attempts
from webtask_scheduler.scheduler.rules.hosts import canonical_host
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.cases import each


def full_width(text):
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in text)


LOOPBACK = [
    "http://127.0.0.1",
    "http://127.0.0.1./x",
    "http://127.1/?q",
    "http://127.0.1#f",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0X7F000001/",
    "http://0177.0.0.01/",
    "http://017700000001",
    "HTTP://127.0.0.1:80/",
    "http://127.0.0.1:0080/",
    "http://127.0.0.1:/",
    "https://127.1:443/",
    "http://user:pass%40word@127.0.0.1/",
    f"http://{full_width('127.0.0.1')}/",
    "http://127。0｡0。1/",
    "http://%31%32%37.0.0.1/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::FFFF:7f00:1]/",
    "http://[0:0:0:0:0:ffff:7f00:1]:80/",
    "127.1",
    "127.0.0.1:80",
]


@each("url", LOOPBACK)
def test_every_spelling_of_an_address_is_one_host(url):
    assert canonical_host(url) == "127.0.0.1"


@each(
    ("url", "host"),
    [
        ("http://localhost/", "localhost"),
        ("http://LocalHost.:80/", "localhost"),
        ("http://%6cocalhost/", "localhost"),
        ("http://localhost:8000/", "localhost:8000"),
        ("http://127.1:8000/", "127.0.0.1:8000"),
        ("http://[::1]/", "[::1]"),
        ("http://[0:0:0:0:0:0:0:1]:80/", "[::1]"),
        ("http://[0::0001]:8080/", "[::1]:8080"),
        ("http://[FE80::1%25eth0]/", "[fe80::1%eth0]"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
        ("http://BÜCHER.example./", "xn--bcher-kva.example"),
        ("http://bu\u0308cher.example/", "xn--bcher-kva.example"),
        ("http://XN--Bcher-KVA.Example/", "xn--bcher-kva.example"),
        ("http://\uff42ücher。\uff45xample/", "xn--bcher-kva.example"),
        ("https://a.example:443/", "a.example"),
        # A host that was typed or stored has no scheme: both default ports are left out, whatever the scheme.
        ("https://a.example:80/", "a.example"),
        ("a.example:443", "a.example"),
        ("http://a_b.example", "a_b.example"),
        # Numbers that are no address are names.
        ("http://4294967296/", "4294967296"),
        ("http://1.2.3.4.5/", "1.2.3.4.5"),
        ("http://09.1/", "09.1"),
        ("http://1.example/", "1.example"),
        ("  A.Example ", "a.example"),
        ("", ""),
        (" ", " "),
        # What names no host is never empty, which would mean every host.
        ("http://", "http://"),
        ("http://user@/", "http://user@/"),
        ("/", "/"),
        ("not a host", "not a host"),
    ],
)
def test_a_host_has_one_canonical_form(url, host):
    assert canonical_host(url) == host


@example("@ 0")
@given(st.text())
def test_canonical_host_of_anything_is_stable_and_empty_only_for_nothing(text):
    host = canonical_host(text)
    assert canonical_host(host) == host
    assert bool(host) == bool(text)


LABELS = st.text("abcxyz0189-üßéλж例え", min_size=1, max_size=8)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
SCHEMES = st.sampled_from(["http", "https", "HTTP"])
PORTS = st.sampled_from(["", ":", ":80", ":443", ":0443", ":8000"])


@given(SCHEMES, st.sampled_from(["", "u@", "u:p@"]), NAMES, st.sampled_from(["", "."]), PORTS)
def test_canonical_host_of_a_url_is_stable(scheme, user, name, dot, port):
    host = canonical_host(f"{scheme}://{user}{name}{dot}{port}/path")
    assert canonical_host(f"http://{host}/") == host
    assert canonical_host(host) == host


def ipv4_spellings(address):
    """Return ways in which inet_aton reads one address."""
    number = int(address)
    a, b, c, d = address.packed
    decimal = str(address)
    return [
        decimal,
        f"{decimal}.",
        full_width(decimal),
        decimal.replace(".", "。"),
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"{a:#x}.0{b:o}.{c}.{d:#X}",
        f"[::ffff:{decimal}]",
        f"[{ipaddress.IPv6Address(0xFFFF << 32 | number).exploded.upper()}]",
    ]


@given(st.ip_addresses(v=4), PORTS, SCHEMES)
def test_every_spelling_of_an_ipv4_address_maps_to_one_host(address, port, scheme):
    found = {canonical_host(f"{scheme}://me@{one}{port}/") for one in ipv4_spellings(address)}
    assert len(found) == 1
    assert found.pop().partition(":")[0] == str(address)


@given(st.ip_addresses(v=6), PORTS)
def test_every_spelling_of_an_ipv6_address_maps_to_one_host(address, port):
    spellings = {address.exploded, address.exploded.upper(), address.compressed, str(address).upper()}
    found = {canonical_host(f"http://[{one}]{port}/") for one in spellings}
    assert len(found) == 1
    assert address.ipv4_mapped or found.pop().startswith(f"[{address}]")


def test_canonical_hosts_of_a_batch_cost_next_to_nothing():
    """Creation in batches of 500 is a bar: 500 hosts never seen before take less than a hundredth of its time."""
    best = 1.0
    for run in range(5):
        urls = [f"https://shop-{run}-{number}.example/hook?n={number}" for number in range(500)]
        began = time.process_time()
        for url in urls:
            canonical_host(url)
        best = min(best, time.process_time() - began)
    assert best < 0.005


# Where hosts are compared


@pytest.mark.django_db
@each("spelling", ["127.1:9", "http://127.0.0.1.:9/x", "0x7f.1:9", "[::ffff:127.0.0.1]:9"])
def test_call_stop_holds_every_spelling_of_its_host(make_timer, delivery_of, spelling):
    services.stop_calls(host=spelling, reason="flood")
    assert CallStop.objects.get().host == "127.0.0.1:9"
    timers = [make_timer(f"http://{host}:9/", delay_seconds=-1) for host in ("127.0.0.1", "2130706433", "127.1.")]
    for timer in timers:
        started, *_ = start_attempts([(i.delivery_id, i.token) for i in claim_due(timer_id=timer.pk).held])
        assert not started
        assert delivery_of(timer).state == State.HELD
    assert services.resume_calls(host="2130706433:9")
    assert not CallStop.objects.exists()


@pytest.mark.django_db
def test_flow_is_shared_by_every_spelling_of_a_host(make_timer):
    timers = [make_timer(url) for url in ("http://localhost/", "https://LOCALHOST.:443/", "http://me@localhost:80/a")]
    assert len({timer.flow for timer in timers}) == 1
    services.edit(timers[0].pk, lambda _: (services.NewTimer(web_url="http://127.1/"), False))
    assert Timer.objects.get(pk=timers[0].pk).host == "127.0.0.1"


@pytest.mark.django_db
@pytest.mark.parametrize("spelling", ["127.1:9", "HTTP://2130706433:9/", "127.0.0.1.:9"])
def test_filters_take_every_spelling_of_a_host(client, make_timer, capsys, spelling):
    timer = make_timer("http://0x7f.1:9/here")
    make_timer("http://elsewhere.example/")
    listed = client.get("/timer", {"host": spelling}).json()["timers"]
    assert [one["task_id"] for one in listed] == [str(timer.pk)]
    assert admin_lists.host_in(spelling) == timer.host
    call_command("timer", "list", "--host", spelling)
    shown = capsys.readouterr().out
    assert str(timer.pk) in shown
    assert "elsewhere" not in shown


@pytest.mark.django_db
@each("spelling", ["http://", "/", "user@", " "])
def test_filter_that_names_no_host_fits_nothing(client, make_timer, spelling):
    make_timer()
    answer = client.get("/timer", {"host": spelling})
    assert not answer.json().get("timers")


# The migration


def migrate():
    module = importlib.import_module("webtask_scheduler.scheduler.migrations.0008_canonical_hosts")
    with connection.schema_editor(atomic=False) as editor:
        module.canonicalise(None, editor)


def as_before(sql, timer, host):
    """Have a timer stand as the release before wrote it."""
    sql("UPDATE scheduler_timer SET host = %s WHERE id = %s", host, timer.pk)
    sql(
        "UPDATE scheduler_delivery d SET flow = t.flow FROM scheduler_timer t WHERE t.id = d.timer_id AND t.id = %s",
        timer.pk,
    )


@pytest.mark.django_db
def test_migration_rewrites_hosts_and_the_flows_of_open_deliveries_and_nothing_else(make_timer, delivery_of, sql):
    odd, ended, plain = make_timer("https://Shop.Example.:443/"), make_timer("http://127.1/"), make_timer()
    as_before(sql, odd, "shop.example.:443")
    as_before(sql, ended, "127.1")
    services.cancel(ended.pk)
    before = delivery_of(ended).flow
    places = "SELECT id, ctid::text FROM scheduler_timer WHERE id = %s"
    untouched = sql(places, plain.pk)
    migrate()
    assert set(Timer.objects.values_list("host", flat=True)) == {"shop.example", "127.0.0.1", "127.0.0.1:9"}
    assert delivery_of(odd).flow == Timer.objects.get(pk=odd.pk).flow
    assert delivery_of(ended).flow == before
    assert sql(places, plain.pk) == untouched
    written = sql("SELECT id, ctid::text FROM scheduler_timer ORDER BY id")
    migrate()
    assert sql("SELECT id, ctid::text FROM scheduler_timer ORDER BY id") == written


@pytest.mark.django_db
def test_migration_merges_call_stops_and_loses_none(make_timer):
    CallStop.objects.create(host="", reason="all")
    CallStop.objects.create(host="localhost.", reason="first")
    CallStop.objects.create(host="localhost:80", reason="second")
    CallStop.objects.create(host="api.example:8000", reason="stays")
    CallStop.objects.create(host="https://whole.example/url", reason="whole")
    migrate()
    assert set(CallStop.objects.values_list("host", flat=True)) == {
        "",
        "localhost",
        "api.example:8000",
        "whole.example",
    }
