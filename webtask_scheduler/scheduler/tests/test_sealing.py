"""What of a timer is encrypted, and that it comes back unchanged."""

import json
import string

import pytest
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from webtask_scheduler import vault
from webtask_scheduler.scheduler import sealing
from webtask_scheduler.scheduler.rules.options import Options
from webtask_scheduler.scheduler.sealing import MASK, MaskError, kept, opened, sealed, shown, shown_url
from webtask_scheduler.scheduler.tests.support.cases import each

URL = "https://me:pa%3Fss@a.example:8443/x?y=1#z"
GIVEN = {
    "method": "PUT",
    "headers": {"Authorization": "Bearer m4rk", "ab": ""},
    "body": {"card": "m4rk"},
    "content_type": "application/json",
    "sensitive": True,
    "labels": {"a": "b"},
    "callback_url": "https://m4rk@b.example/?a=b@c",
    "failure_callback_url": "https://c.example/",
}


def keys(settings, *names):
    """Use keys, newest first; the same name is the same key."""
    made = {name: KEYS.setdefault(name, Fernet.generate_key().decode()) for name in names}
    settings.WEBTASK_ENCRYPTION_KEYS = list(made.values())


KEYS = {}


def test_stored_form_holds_no_secret_and_gives_all_back_in_order():
    web_url, options = sealed(URL, GIVEN)
    assert web_url == "https://***@a.example:8443/x?y=1#z"
    text = json.dumps(options)
    assert "m4rk" not in text
    assert "pa%3Fss" not in text
    assert options["callback_url"] == "https://***@b.example/?a=b@c"
    assert options["failure_callback_url"] == "https://c.example/"
    assert opened(web_url, options) == (URL, GIVEN)
    assert list(opened(web_url, options)[1]) == list(GIVEN)
    # What is stored already is not encrypted twice.
    assert sealed(web_url, options) == (web_url, options)


@each("form", [lambda url, options: (url, options), sealed], ids=["given", "stored"])
def test_shown_are_names_and_masks_whatever_the_form(form):
    web_url, options = form(URL, GIVEN | {"request_id": "r", "depth": 1})
    assert shown_url(web_url) == "https://***@a.example:8443/x?y=1#z"
    assert shown(options) == GIVEN | {
        "depth": 1,
        "headers": {"Authorization": MASK, "ab": MASK},
        "body": MASK,
        "callback_url": "https://***@b.example/?a=b@c",
    }


@pytest.mark.parametrize(
    ("web_url", "options"),
    [
        ("https://a.example/", {}),
        ("https://a.example/@b:c@d?e@f", {"method": "GET", "callback_url": "https://b.example/@c"}),
        ("https://@a.example/", {"body": {"a": 1}, "labels": {"a": "b"}}),
    ],
)
def test_timer_without_secrets_is_stored_as_it_is_and_costs_nothing(web_url, options, monkeypatch):
    for name in ("seal", "unseal"):
        monkeypatch.delattr(vault, name)
    assert sealed(web_url, options) == opened(web_url, options) == (web_url, options)
    assert (shown_url(web_url), shown(options)) == (web_url, options)
    assert sealing.is_current(web_url, options)


def test_release_before_cannot_take_masks_for_values():
    """It makes a dict of the headers and a call of that, and an error there is an attempt that is retried."""
    for some in ({"headers": {"ab": "c"}}, {"sensitive": True, "body": "b"}, {}):
        _, options = sealed("https://me@a.example/", some)
        with pytest.raises((TypeError, ValueError)):
            dict(options["headers"])


user_infos = st.text(string.ascii_letters + string.digits + "%:@!$&'()*+,;=~._-\\1", max_size=20)
values = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)


@given(
    user=user_infos,
    headers=st.dictionaries(st.text("ABab-", min_size=1), values, max_size=3),
    body=st.none() | values | st.lists(st.integers() | st.floats(allow_nan=False) | values, max_size=3),
    sensitive=st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_stored_is_opened_as_it_was_given(user, headers, body, sensitive):
    web_url = f"https://{user}@a.example/x@y" if user else "https://a.example/"
    given_ = ({"headers": headers} if headers else {}) | ({} if body is None else {"body": body})
    given_ |= {"sensitive": True} if sensitive else {}
    stored = sealed(web_url, given_)
    assert opened(*stored) == (web_url, given_)
    assert sealing.is_current(*stored)
    if user:
        assert f"//{user}@" not in stored[0] or user == MASK


# Keys


def test_new_key_reads_what_the_old_one_encrypted_and_without_it_the_key_is_named(settings):
    keys(settings, "old")
    old_id, stored = vault.newest_key(), sealed(URL, GIVEN)
    secret = vault.seal("whsec_x")
    keys(settings, "new", "old")
    assert opened(*stored) == (URL, GIVEN)
    assert not sealing.is_current(*stored)
    assert vault.unseal_or_plain(secret) == "whsec_x"
    keys(settings, "new")
    assert vault.missing_keys([old_id, vault.newest_key()]) == [old_id]
    for read in (lambda: opened(*stored), lambda: vault.unseal_or_plain(secret)):
        with pytest.raises(vault.KeyMissingError, match=f"the key {old_id}, which is not in WEBTASK_ENCRYPTION_KEYS"):
            read()


def test_damaged_value_is_named_without_showing_it():
    text = vault.seal("hidden")
    broken = text[:-5] + ("A" if text[-5] != "A" else "B") + text[-4:]
    with pytest.raises(vault.VaultError, match="is damaged and cannot be read") as caught:
        vault.unseal(broken)
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_hash_of_a_request_depends_on_the_key_and_an_old_key_still_knows_it(settings):
    keys(settings, "old")
    (old,) = vault.fingerprints(b"request")
    keys(settings, "new", "old")
    assert vault.fingerprints(b"request")[1] == old != vault.fingerprints(b"request")[0]


# Edits


def test_masks_keep_values_and_others_replace_them():
    stored = sealed(URL, GIVEN)
    patch = shown(stored[1]) | {"headers": {"Authorization": MASK, "new": "n"}, "timeout_seconds": 3}
    _, options = kept(*stored, shown_url(URL) + "2", patch)
    assert options["headers"] == {"Authorization": "Bearer m4rk", "new": "n"}
    assert options["body"] == {"card": "m4rk"}
    assert options["callback_url"] == GIVEN["callback_url"]


def test_edit_that_keeps_all_secrets_needs_no_key(settings):
    keys(settings, "old")
    stored = sealed(URL, GIVEN)
    keys(settings, "new")
    web_url, options = kept(*stored, stored[0] + "2", shown(stored[1]) | {"timeout_seconds": 3})
    keys(settings, "old")
    assert opened(web_url, options) == (URL + "2", GIVEN | {"timeout_seconds": 3})


@each("form", [lambda url, options: (url, options), sealed], ids=["given", "stored"])
@each(
    ("web_url", "change", "field"),
    [
        # Another host, port or scheme would get what was given for this one.
        ("https://***@b.example:8443/x", {}, "web_url"),
        ("https://a.example:8444/x", {"body": None}, "headers"),
        ("http://a.example:8443/x", {"headers": None}, "body"),
        ("https://***@a.example:8443/x", {"callback_url": "https://***@other.example/"}, "callback_url"),
        # There is no such value.
        ("https://***@a.example:8443/x", {"headers": {"other": MASK}}, "headers"),
        ("https://***@a.example:8443/x", {"body": None, "body_base64": MASK}, "body_base64"),
        ("https://***@a.example:8443/x", {"failure_callback_url": "https://***@c.example/"}, "failure_callback_url"),
        # It would be shown.
        ("https://***@a.example:8443/x", {"sensitive": None}, "body"),
    ],
)
def test_mask_that_cannot_be_kept_is_refused_by_field(form, web_url, change, field):
    stored = form(URL, GIVEN)
    patch = {name: value for name, value in (shown(stored[1]) | change).items() if value is not None}
    with pytest.raises(MaskError) as caught:
        kept(*stored, web_url, patch)
    assert caught.value.field == field


def test_options_of_a_worker_are_the_given_ones():
    options = sealing.opened_options(Options(sealed(URL, GIVEN)[1]))
    assert options.headers == GIVEN["headers"]
    assert options.body() == (b'{"card": "m4rk"}', "application/json")
    assert options.callback_url(succeeded=True) == GIVEN["callback_url"]
