"""Who is behind a request: the address that a proxy saw, never what a client claims."""

import pytest
from django.test import RequestFactory

from webtask_scheduler.access import actor
from webtask_scheduler.addresses import address_of


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, None, "192.0.2.1"),
        (0, "203.0.113.9", "192.0.2.1"),
        (1, "203.0.113.9", "203.0.113.9"),
        (1, "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        (2, "6.6.6.6, 198.51.100.7, 203.0.113.9", "198.51.100.7"),
        (2, "203.0.113.9", "192.0.2.1"),
        (1, "2001:DB8::1", "2001:db8::1"),
        (1, "fe80::1%eth0", "fe80::1"),
        (1, "<script>", "192.0.2.1"),
        (1, "", "192.0.2.1"),
    ],
)
def test_address_is_what_the_trusted_proxies_say(settings, proxies, forwarded, address):
    settings.WEBTASK_PROXIES = proxies
    headers = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
    assert address_of(RequestFactory().get("/", REMOTE_ADDR="192.0.2.1", **headers)) == address


def test_request_without_any_address_has_none(settings):
    settings.WEBTASK_PROXIES = 0
    assert address_of(RequestFactory().get("/", REMOTE_ADDR="")) == ""


def test_actor_is_set_for_the_work_inside_alone():
    outer, inner = actor.Actor(through=actor.COMMAND, name="root"), actor.Actor(through=actor.STOCK_ROW)
    assert actor.current() == actor.NOBODY
    with actor.unless_set(inner):
        assert actor.current() == inner
    with actor.of(outer):
        with actor.unless_set(inner):
            assert actor.current() == outer
        with actor.of(inner):
            assert actor.current() == inner
        assert actor.current() == outer
    assert actor.current() == actor.NOBODY


class Holder:
    """Whoever comes with a key, as authentication may know it: an id and no name."""

    is_authenticated, pk = True, 7


def test_request_with_a_key_is_known_by_the_key_and_its_owners_id(settings):
    settings.WEBTASK_PROXIES = 0
    seen = []

    def view(request):
        # What authentication finds out, and when.
        request.user = Holder()
        actor.by_key(12)
        seen.append(actor.current())

    request = RequestFactory().get("/", REMOTE_ADDR="192.0.2.1")
    request.resolver_match = None
    actor.Middleware(view)(request)
    assert seen == [actor.Actor(through=actor.API, user_id=7, key="12", address="192.0.2.1")]
    assert seen[0].to_store() == {"through": "api", "key": "12", "address": "192.0.2.1"}
    assert actor.current() == actor.NOBODY
    # Outside a request nothing is noted.
    actor.by_key(13)
    assert actor.current() == actor.NOBODY
