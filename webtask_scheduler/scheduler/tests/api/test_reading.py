"""The short way of reading a plain timer says the same as the serializer that is the long way."""

import itertools
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.exceptions import ValidationError

from webtask_scheduler.scheduler.api.reading import PlainTimerSerializer, _plain_timer
from webtask_scheduler.scheduler.outgoing import checks

URLS = [
    *(
        "http://a.example/hook",
        "https://A.example:8443/?q=1#f",
        "http://127.0.0.1:9/",
        "http://[::1]:80/x",
        "http://a.example",
    ),
    *(
        "http://a.example?x=1",
        "http://a.example#f",
        "http://user:pass@a.example/",
        "http://***@a.example/",
        "http://\xfc.example/",
    ),
    *(
        "HTTP://a.example/",
        "ftp://a.example/",
        "//a.example/",
        "http://",
        "http:///x",
        "http://a..example/",
        "http://a_b.example/",
    ),
    *(
        "http://a.example:0/",
        "http://a.example:00080/",
        "http://a.example:65536/",
        "http://a.example:x/",
        "http://a:1:2/",
    ),
    *(
        "http://a.example:6379/",
        "http://240.0.0.1/",
        "http://169.254.169.254/latest",
        "http://0x7f.1/",
        "http://.example/",
    ),
    *(
        " http://a.example/",
        "http://a.example/ ",
        "http://a.example/\n",
        "http://a.example/\x00",
        "http://a.example/\ud800",
        "",
    ),
    *(
        "http://a.example/\\",
        "http://" + "a" * 64 + "/",
        "http://a.example/" + "x" * 2031,
        "http://a.example/" + "x" * 2032,
    ),
    *(
        "http://-a.example/",
        "http://a.example./",
        "http://1/",
        "http://a.example:/",
        "http://xn--a.example/",
        None,
        5,
        ["x"],
    ),
]
DELAYS = [
    {},
    {"hours": 0},
    {"hours": 1, "minutes": 2, "seconds": 3},
    {"seconds": -1},
    {"seconds": 1.0},
    {"minutes": "1"},
]
DELAYS += [{"seconds": None}, {"seconds": True}, {"hours": 10**9}, {"seconds": 315_360_000}, {"seconds": 315_360_001}]
DELAYS += [{"seconds": float("inf")}, {"hours": 10**400}]


def check(data):
    short = _plain_timer(data)
    try:
        long = PlainTimerSerializer().run_validation(data)
    except ValidationError:
        long = None
    # What the short way does not take goes the long way.
    assert short is None or short == long, data
    return short is not None


def test_short_way_reads_the_same_and_takes_what_is_usual():
    taken = sum(check({"web_url": url} | delay) for url, delay in itertools.product(URLS, DELAYS))
    assert check({"seconds": 5}) is False
    # Three delays are valid for each of the URLs that are.
    assert taken > 3 * 10


def test_short_way_takes_the_common_case():
    assert check({"hours": 0, "minutes": 0, "seconds": 5, "web_url": "http://a.example/hook?x=1"})


@given(st.text(alphabet="htps:/.?#@[]%aA0-_\\ \xfc\t", max_size=30).map("http://{}".format))
def test_host_is_found_as_urlsplit_finds_it(url):
    usual = checks._USUAL.match(url)
    if usual is not None and url.isprintable() and " " not in url and "\\" not in url:
        assert (usual[1], usual[2]) == urlsplit(url)[:2]


def test_most_urls_are_usual():
    assert all(
        checks._USUAL.match(url) for url in ("http://a.example", "https://a.b-c.example:8443/x", "http://1.2.3.4/?q")
    )


@pytest.mark.parametrize("url", ["http://a.example@b.example/", "http://[::1]/", "http://\xfc.example/", "ftp://a/"])
def test_other_urls_are_not(url):
    assert checks._USUAL.match(url) is None
