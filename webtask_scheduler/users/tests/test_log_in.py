"""The admin's log-in: how often one may try, from where, with which second factor, and for how long one stays."""

import base64
import io
import re
import threading
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from django.conf import settings as django_settings
from django.contrib.auth import authenticate
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone
from django_otp.oath import totp
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

from webtask_scheduler import vault
from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.users import second_factor, throttle
from webtask_scheduler.users.models import AppDevice, LoginFailures, RecoveryDevice, User

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"
LOGIN = "/admin/login/"
MANY = b"There were too many attempts to log in."


@pytest.fixture(autouse=True)
def ada():
    return User.objects.create_superuser("ada@example.com", PASSWORD)


def log_in(client, password=PASSWORD, *, name="ada@example.com", address="192.0.2.7", **fields):
    data = {"username": name, "password": password, "next": "/admin/"} | fields
    return client.post(LOGIN, data, REMOTE_ADDR=address)


def fail(client, times, **more):
    return [log_in(client, "wrong", **more).status_code for _ in range(times)]


def later(**offset):
    """Let time pass for all who wait."""
    for row in LoginFailures.objects.all():
        row.free_at -= timedelta(**offset)
        row.last_at -= timedelta(**offset)
        row.save()


# How often


def test_after_a_few_failures_the_next_try_waits_longer_and_longer(client):
    assert fail(client, 5) == [200] * 5
    answer = log_in(client)
    assert answer.status_code == 429
    assert MANY in answer.content
    assert b"Try again in 30 seconds." in answer.content
    assert answer["Retry-After"] == "30"
    for seconds in (30, 60, 120, 240, 480, 900, 900):
        later(seconds=seconds)
        assert fail(client, 1) == [200]
        wait = int(log_in(client)["Retry-After"])
        assert wait in (min(seconds * 2, 900), min(seconds * 2, 900) - 1)
    assert b"Try again in 15 minutes." in log_in(client).content
    # It ends, and the right password is as good as ever.
    later(minutes=15)
    assert log_in(client).status_code == 302
    assert client.get("/admin/").status_code == 200


def test_failures_are_forgotten_after_half_a_day(client):
    fail(client, 5)
    later(hours=12)
    assert fail(client, 5) == [200] * 5


def test_success_begins_anew(client):
    fail(client, 4)
    assert log_in(client).status_code == 302
    assert fail(Client(), 4) == [200] * 4


def test_spellings_of_an_account_are_one(client):
    names = ["ada@example.com", "ADA@example.com", "Ada@Example.com", "ada@EXAMPLE.com", "aDa@example.com"]
    assert [fail(client, 1, name=name) for name in names] == [[200]] * 5
    assert fail(client, 1) == [429]


def test_name_with_spaces_around_it_is_the_account_whose_tries_are_taken_back(client):
    for _ in range(8):
        assert log_in(Client(), name=" ada@example.com ").status_code == 302
    assert log_in(client).status_code == 302


def test_names_that_do_not_exist_are_throttled_alike(client):
    assert fail(client, 6, name="nobody@example.com") == [200] * 5 + [429]


def test_one_password_for_many_accounts_is_throttled_by_its_address(client):
    statuses = [fail(client, 1, name=f"user{number}@example.com")[0] for number in range(21)]
    assert statuses == [200] * 20 + [429]
    # Other addresses go on.
    assert log_in(client, address="192.0.2.8").status_code == 302


def test_many_addresses_for_one_account_are_throttled_by_the_account(client):
    statuses = [fail(client, 1, address=f"198.51.100.{number}")[0] for number in range(51)]
    assert statuses == [200] * 50 + [429]
    assert log_in(client, address="203.0.113.1").status_code == 429


def test_addresses_of_one_network_of_ipv6_are_one(client):
    assert [fail(client, 1, address=f"2001:db8:1:2::{number:x}")[0] for number in range(6)] == [200] * 5 + [429]
    assert fail(client, 1, address="2001:db8:1:3::1") == [200]


def test_nobody_keeps_an_owner_out_whose_browser_is_known(client):
    assert log_in(client).status_code == 302
    client.cookies.pop(django_settings.SESSION_COOKIE_NAME)
    for number in range(60):
        fail(Client(), 1, address=f"198.51.100.{number}")
    fail(Client(), 6)
    assert log_in(Client()).status_code == 429
    assert log_in(client).status_code == 302
    # The cookie is no way around: it is counted too, and is good for this account alone.
    assert fail(client, 6) == [200] * 5 + [429]
    User.objects.create_superuser("bob@example.com", PASSWORD)
    assert fail(client, 21, name="bob@example.com", address="192.0.2.99") == [200] * 5 + [429] * 16


def test_cookie_of_the_known_browser_is_for_the_admin_alone_and_cannot_be_made(client):
    answer = log_in(client)
    cookie = answer.cookies[throttle.COOKIE]
    assert (cookie["path"], cookie["httponly"], cookie["samesite"]) == ("/admin/", True, "Lax")
    forger = Client()
    for value in ("", "x", cookie.value[:-1], cookie.value + "x", '["a","b"]'):
        forger.cookies[throttle.COOKIE] = value
        fail(forger, 1)
    assert fail(forger, 1) == [429]


def test_address_is_the_one_that_the_trusted_proxies_say(client, settings):
    settings.WEBTASK_PROXIES = 1
    for number in range(6):
        # What a client puts in front is not believed.
        client.post(
            LOGIN,
            {"username": "ada@example.com", "password": "wrong"},
            headers={"x-forwarded-for": f"198.51.100.{number}, 192.0.2.7"},
            REMOTE_ADDR="10.0.0.1",
        )
    headers = {"x-forwarded-for": "192.0.2.7"}
    data = {"username": "ada@example.com", "password": PASSWORD}
    assert client.post(LOGIN, data, headers=headers, REMOTE_ADDR="10.0.0.1").status_code == 429
    assert client.post(LOGIN, data, headers={"x-forwarded-for": "192.0.2.8"}).status_code == 302
    settings.WEBTASK_PROXIES = 0
    assert Client().post(LOGIN, data, headers=headers, REMOTE_ADDR="192.0.2.9").status_code == 302


@pytest.mark.django_db(transaction=True)
def test_tries_side_by_side_are_all_counted():
    answers = []

    def try_it():
        try:
            answers.append(log_in(Client(), "wrong").status_code)
        finally:
            connection.close()

    threads = [threading.Thread(target=try_it) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] * 5 + [429] * 7


def test_neither_names_nor_passwords_are_stored_or_logged(client, caplog):
    for _ in range(7):
        log_in(client, "hunter2-is-secret", name="typed-a-password-here")
    stored = repr(list(LoginFailures.objects.values_list()))
    for secret in ("hunter2-is-secret", "typed-a-password-here", "192.0.2.7"):
        assert secret not in stored
    assert "hunter2" not in caplog.text
    assert "typed-a-password" not in caplog.text
    assert "logins_throttled address=192.0.2.7 seconds=30" in caplog.text
    assert b"hunter2" not in log_in(client, "hunter2-is-secret").content


def test_rows_are_deleted_when_they_are_forgotten(client):
    fail(client, 1, name="a@example.com")
    fail(client, 1, name="b@example.com")
    assert LoginFailures.objects.count() == 5
    later(hours=13)
    fail(client, 1, name="c@example.com", address="192.0.2.50")
    assert LoginFailures.objects.count() == 3


def test_shell_is_not_throttled():
    for _ in range(30):
        assert authenticate(username="ada@example.com", password="wrong") is None
    assert not LoginFailures.objects.exists()


# For how long


def test_session_ends_with_the_browser_and_after_a_working_day(client):
    answer = log_in(client)
    cookie = answer.cookies[django_settings.SESSION_COOKIE_NAME]
    assert (cookie["max-age"], cookie["expires"]) == ("", "")
    assert client.session.get_expiry_age() == 12 * 3600
    Session.objects.update(expire_date=timezone.now() - timedelta(seconds=1))
    assert client.get("/admin/").status_code == 302


# The second factor


@pytest.fixture
def device(ada):
    return AppDevice.objects.create(user=ada, name="app", confirmed=True)


def code_of(device, *, step=0):
    return f"{totp(device.bin_key, t0=-step * 30):06d}"


def test_account_with_a_second_factor_needs_its_code(client, device):
    answer = log_in(client)
    assert b"This account has a second factor" in answer.content
    assert b"This code is not right" in log_in(client, otp_token="000000").content
    # After a wrong code the device rests for a second.
    TOTPDevice.objects.update(throttling_failure_timestamp=None)
    assert client.get("/admin/").status_code == 302
    assert log_in(client, otp_token=code_of(device)).status_code == 302
    assert client.get("/admin/").status_code == 200
    # Each code is good once.
    assert log_in(Client(), otp_token=code_of(device)).status_code == 200


def test_code_is_not_free_to_guess(client, device):
    assert [log_in(client, otp_token=f"{number:06d}").status_code for number in range(6)] == [200] * 5 + [429]


def test_code_is_not_looked_at_without_the_password(client, device):
    answer = log_in(client, "wrong", otp_token=code_of(device))
    assert b"second factor: give" not in answer.content
    assert b"This code" not in answer.content


def test_session_from_before_the_second_factor_has_to_show_it(client, ada):
    log_in(client)
    assert client.get("/admin/").status_code == 200
    device = AppDevice.objects.create(user=ada, name="app", confirmed=True)
    assert client.get("/admin/").status_code == 302
    assert client.get(LOGIN).status_code == 200
    assert log_in(client, otp_token=code_of(device)).status_code == 302
    assert client.get("/admin/").status_code == 200


def test_required_second_factor_lets_nobody_in_without_one(client, settings):
    settings.ADMIN_SECOND_FACTOR = "required"
    assert b"This account needs a second factor" in log_in(client).content
    client.force_login(User.objects.get())
    assert client.get("/admin/").status_code == 302


def test_second_factor_that_is_off_is_not_asked_for(client, device, settings):
    settings.ADMIN_SECOND_FACTOR = "off"
    assert b"otp_token" not in client.get(LOGIN).content
    assert log_in(client).status_code == 302
    assert client.get("/admin/").status_code == 200


def test_operator_adds_a_second_factor_by_command(client, ada, monkeypatch):
    out = io.StringIO()
    asked = []

    def type_it(prompt):
        asked.append(prompt)
        key = re.search(r"secret=([A-Z2-7]+)", out.getvalue()).group(1)
        return "12 34" if len(asked) == 1 else f"{totp(base64.b32decode(key)):06d}"

    monkeypatch.setattr("builtins.input", type_it)
    call_command("second_factor", "add", "ADA@example.com", stdout=out)
    assert len(asked) == 2
    assert "otpauth://totp/webtask_scheduler" in out.getvalue()
    codes = out.getvalue().split("elsewhere:")[1].split()
    assert len(codes) == 10
    assert log_in(client).status_code == 200
    assert log_in(client, otp_token=codes[0]).status_code == 302
    assert log_in(Client(), otp_token=codes[0]).status_code == 200
    assert StaticToken.objects.count() == 9
    with pytest.raises(CommandError, match="has a second factor"):
        call_command("second_factor", "add", "ada@example.com", stdout=out)
    out = io.StringIO()
    call_command("second_factor", "list", stdout=out)
    assert "'ada@example.com': second factor, 9 recovery codes left" in out.getvalue()
    call_command("second_factor", "remove", "ada@example.com", stdout=out)
    assert log_in(Client()).status_code == 302


def test_codes_that_are_not_right_store_nothing(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "000000")
    with pytest.raises(CommandError, match="Nothing was stored"):
        call_command("second_factor", "add", "ada@example.com", stdout=io.StringIO())
    assert not TOTPDevice.objects.exists()


def test_recovery_codes_stay_usable_however_often_the_app_is_used(client, ada):
    out = io.StringIO()
    call_command("second_factor", "add", "ada@example.com", "--noinput", stdout=out)
    device = AppDevice.objects.get()
    # Not one of the future: with a code whose half minute ended just now, the library takes the app's clock to be slow.
    for step in (-1, 0):
        assert log_in(Client(), otp_token=code_of(device, step=step)).status_code == 302
    assert log_in(client, otp_token=out.getvalue().split()[-1]).status_code == 302


def test_key_is_not_shown_in_the_admin(client, ada, device):
    log_in(client, otp_token=code_of(device))
    page = client.get(f"/admin/otp_totp/totpdevice/{device.pk}/change/")
    assert page.status_code == 200
    for key in (device.key, device.bin_key.hex(), base64.b32encode(device.bin_key).decode()):
        assert key.encode() not in page.content
    # django-otp's own pages, which show it, are not there, nor one that would make another.
    for path in ("config", "qrcode"):
        answer = client.get(f"/admin/otp_totp/totpdevice/{device.pk}/{path}/", follow=True)
        assert answer.redirect_chain[-1][0] == "/admin/"
    for kind in ("totp/totpdevice", "static/staticdevice"):
        assert client.get(f"/admin/otp_{kind}/add/").status_code == 403


# How a second factor is stored


def test_second_factor_is_encrypted(ada, sql):
    device = AppDevice(user=ada, name="app")
    key = device.key
    codes = second_factor.add(device)
    stored = repr([sql(f"SELECT * FROM {table}") for table in ("otp_totp_totpdevice", "otp_static_statictoken")])
    for secret in (key, *codes):
        assert secret not in stored
    assert AppDevice.objects.get().bin_key.hex() == key
    # What logs in with it does not store it anew in another form.
    assert log_in(Client(), otp_token=code_of(AppDevice.objects.get())).status_code == 302
    assert sql("SELECT key FROM otp_totp_totpdevice") == [(device.key,)]


def test_plain_second_factor_of_a_release_before_lets_in_and_stays_plain_until_it_is_rotated(ada, capsys):
    """Web processes of that release, which may still run, read no other form."""
    old = TOTPDevice.objects.create(user=ada, name="app", confirmed=True)
    codes = StaticDevice.objects.create(user=ada, name="recovery codes", confirmed=True)
    for code in ("abcdefgh", "ijklmnop"):
        StaticToken.objects.create(device=codes, token=code)
    assert log_in(Client(), otp_token=code_of(old, step=-1)).status_code == 302
    assert log_in(Client(), otp_token="abcdefgh").status_code == 302
    assert log_in(Client(), otp_token="abcdefgh").status_code == 200
    assert TOTPDevice.objects.get().bin_key == old.bin_key
    assert StaticToken.objects.get().token == "ijklmnop"
    call_command("rotate_encryption", pause=0)
    assert "second factors: 1/1, recovery codes: 1/1" in capsys.readouterr().out
    assert vault.is_sealed(TOTPDevice.objects.get().key)
    assert vault.is_sealed(StaticToken.objects.get().token)
    assert log_in(Client(), otp_token=code_of(old)).status_code == 302
    RecoveryDevice.objects.update(throttling_failure_timestamp=None)
    assert log_in(Client(), otp_token="ijklmnop").status_code == 302


def test_second_factor_outlives_a_change_of_keys_and_a_lost_key_lets_nobody_in(ada, settings, caplog):
    first, second = (Fernet.generate_key().decode() for _ in range(2))
    settings.WEBTASK_ENCRYPTION_KEYS = [first]
    device = AppDevice(user=ada, name="app")
    codes = second_factor.add(device)
    settings.WEBTASK_ENCRYPTION_KEYS = [second]
    for code in (code_of_key(device), codes[0]):
        answer = log_in(Client(), otp_token=code)
        assert answer.status_code == 200
        assert b"The second factor of this account cannot be read." in answer.content
    assert caplog.text.count("value_unreadable") == 2
    settings.WEBTASK_ENCRYPTION_KEYS = [second, first]
    call_command("rotate_encryption", pause=0)
    settings.WEBTASK_ENCRYPTION_KEYS = [second]
    assert log_in(Client(), otp_token=code_of(AppDevice.objects.get())).status_code == 302
    assert log_in(Client(), otp_token=codes[0]).status_code == 302


def code_of_key(device):
    """Return a code of a device whose key this process has lost meanwhile: any of six digits."""
    return f"{device.pk % 1_000_000:06d}"


def test_session_says_the_device_as_releases_before_do(client, device):
    log_in(client, otp_token=code_of(device))
    assert client.session["otp_device_id"] == f"otp_totp.totpdevice/{device.pk}"


# The audit log


def told(**wanted):
    return list(AuditEntry.objects.filter(**wanted).order_by("pk").values_list("action", "object_id", "through"))


def test_log_ins_that_fail_too_often_are_in_the_audit_log_once_for_each_wait(client, ada):
    fail(client, 9)
    fail(client, 9, name="no-account-but-a-password", address="192.0.2.9")
    of_ada, of_nobody = AuditEntry.objects.filter(action="login.throttled").order_by("pk")
    assert (of_ada.kind, of_ada.object_id, of_ada.owner_id) == ("user", str(ada.pk), ada.pk)
    assert (of_ada.address, of_ada.through, of_ada.user_id) == ("192.0.2.7", "admin", None)
    assert of_ada.after == {"seconds": 30}
    assert (of_nobody.object_id, of_nobody.owner_id, of_nobody.address) == ("", None, "192.0.2.9")
    assert "no-account" not in repr(list(AuditEntry.objects.values()))


def test_second_factors_made_and_removed_by_command_are_in_the_audit_log(ada):
    out = io.StringIO()
    call_command("second_factor", "add", ada.email, "--noinput", stdout=out)
    call_command("second_factor", "remove", ada.email, stdout=out)
    pk = str(ada.pk)
    assert told(action__startswith="second_factor") == [
        ("second_factor.added", pk, "command"),
        ("second_factor.removed", pk, "command"),
    ]
    added, removed = AuditEntry.objects.filter(action__startswith="second_factor").order_by("pk")
    assert added.after == {"device": "app", "recovery_codes": 10}
    assert removed.before == {"devices": ["app", "recovery codes"]}
    stored = repr(list(AuditEntry.objects.values()))
    key = re.search(r"secret=([A-Z2-7]+)", out.getvalue()).group(1)
    for secret in (key, base64.b32decode(key).hex(), *out.getvalue().split("elsewhere:")[1].split()[:10]):
        assert secret not in stored


def test_second_factors_switched_and_deleted_in_the_admin_are_in_the_audit_log(client, ada, device):
    bob = User.objects.create_superuser("bob@example.com", PASSWORD)
    other, third = (AppDevice.objects.create(user=bob, name=name, confirmed=True) for name in ("one", "two"))
    codes = RecoveryDevice.objects.create(user=bob, name="recovery codes", confirmed=True)
    log_in(client, otp_token=code_of(device))
    page = "/admin/otp_totp/totpdevice/"
    assert client.post(f"{page}{other.pk}/change/", {}).status_code == 302
    assert client.post(f"{page}{other.pk}/change/", {}).status_code == 302
    assert client.post(f"{page}{other.pk}/change/", {"confirmed": "on"}).status_code == 302
    assert client.post(f"{page}{other.pk}/delete/", {"post": "yes"}).status_code == 302
    chosen = {"action": "delete_selected", "_selected_action": [third.pk], "post": "yes"}
    assert client.post(page, chosen).status_code == 302
    assert client.post(f"/admin/otp_static/staticdevice/{codes.pk}/delete/", {"post": "yes"}).status_code == 302
    entries = list(AuditEntry.objects.filter(action__startswith="second_factor").order_by("pk"))
    assert [(one.action, one.before, one.after) for one in entries] == [
        ("second_factor.changed", {"device": "one", "confirmed": True}, {"device": "one", "confirmed": False}),
        ("second_factor.changed", {"device": "one", "confirmed": False}, {"device": "one", "confirmed": True}),
        ("second_factor.removed", {"devices": ["one"]}, None),
        ("second_factor.removed", {"devices": ["two"]}, None),
        ("second_factor.removed", {"devices": ["recovery codes"]}, None),
    ]
    assert {(one.user_id, one.through, one.object_id) for one in entries} == {(ada.pk, "admin", str(bob.pk))}
    assert list(TOTPDevice.objects.values_list("pk", flat=True)) == [device.pk]


def test_answer_does_not_say_whether_an_account_exists():
    def shape(name):
        text = log_in(Client(), "wrong", name=name, address=name).content.decode()
        return re.sub(r'name="csrfmiddlewaretoken" value="[^"]*"', "", text).replace(name, "NAME")

    assert shape("ada@example.com") == shape("nobody@example.com")
