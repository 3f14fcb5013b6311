"""API keys: how they are made, found, used, revoked; on the table itself, the command line and the admin."""

import hashlib
import io
import re
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from webtask_scheduler.access import actor, keys
from webtask_scheduler.access.models import ApiKey, AuditEntry, Scope
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.users.models import User

pytestmark = pytest.mark.django_db


def make(owner, *scopes, **more):
    return keys.make(name="shop", owner_id=owner.pk, scopes=scopes or [Scope.TIMERS_READ], **more)


# Making


def test_key_is_shown_once_and_stored_as_its_digest(user):
    made = make(user, Scope.SECRETS, Scope.TIMERS_READ)
    assert re.fullmatch(r"wts_live_[A-Za-z0-9]{40}", made.text)
    row = ApiKey.objects.get()
    assert bytes(row.digest) == hashlib.sha256(made.text.encode()).digest()
    assert (row.name, row.owner, row.prefix) == ("shop", user, made.text[:15])
    assert row.scopes == ["timers:read", "secrets"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_jsonb(key)::text FROM access_apikey key")
        assert made.text[15:] not in cursor.fetchone()[0]


def test_keys_differ(user):
    assert len({make(user).text for _ in range(20)}) == 20


@each(
    ("fields", "wrong"),
    [
        ({"name": " "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["timers:read", "timers:all"]}, "scopes"),
        ({"expires_at": timezone.now() - timedelta(seconds=1)}, "expires_at"),
    ],
)
def test_key_that_makes_no_sense_is_refused_by_field(user, fields, wrong):
    with pytest.raises(ValidationError) as refused:
        keys.make(**{"name": "shop", "owner_id": user.pk, "scopes": ["admin"]} | fields)
    assert list(refused.value.message_dict) == [wrong]
    assert not ApiKey.objects.exists()


def test_owner_has_so_many_keys_in_use_and_no_more(user, monkeypatch):
    monkeypatch.setattr(keys, "KEYS_MOST", 3)
    revoked, expired, *_ = [make(user).key for _ in range(3)]
    with pytest.raises(ValidationError, match="at most 3 keys in use") as refused:
        make(user)
    assert list(refused.value.message_dict) == ["owner"]
    make(User.objects.create_user("other@example.com", "x"))
    keys.revoke(ApiKey.objects.filter(pk=revoked.pk))
    make(user)
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    make(user)
    with pytest.raises(ValidationError):
        make(user)
    assert user.api_keys.count() == 5


@each("scopes", [[], ["timers:all"]])
def test_table_takes_no_unknown_scopes(user, scopes):
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.create(name="x", owner=user, prefix="wts_live_", digest=b"1", scopes=scopes)


# Finding


def test_key_is_found_with_one_statement(user, django_assert_num_queries):
    made = make(user, Scope.ADMIN)
    with django_assert_num_queries(1):
        holder = keys.find(made.text)
    assert (holder.key_id, holder.pk, holder.scopes) == (made.key.pk, user.pk, {"admin"})
    assert holder.is_authenticated
    assert not holder.is_superuser


def test_lookup_reads_the_index_of_digests(user, sql):
    make(user)
    sql("SET LOCAL enable_seqscan = off")
    plan = "\n".join(row[0] for row in sql("EXPLAIN " + keys._FIND.sql.replace("%(digest)s", "%s"), b"1" * 32))
    assert "access_apikey_digest" in plan


def test_what_is_no_key_costs_no_statement(user, django_assert_num_queries):
    text = make(user).text
    with django_assert_num_queries(0):
        for wrong in ("", "x", text[:-1], text + "a", text.upper(), text.replace("live", "test"), text[:-1] + "é"):
            assert keys.find(wrong) is None


def test_another_key_is_not_found(user):
    text = make(user).text
    assert keys.find(text[:-1] + ("a" if text[-1] != "a" else "b")) is None


def test_key_ends_with_its_revocation_its_time_and_its_owner(user):
    revoked, expired, kept = make(user), make(user, expires_at=timezone.now() + timedelta(hours=1)), make(user)
    assert keys.find(expired.text)
    assert keys.revoke(ApiKey.objects.filter(pk=revoked.key.pk)) == 1
    assert keys.revoke(ApiKey.objects.filter(pk=revoked.key.pk)) == 0
    ApiKey.objects.filter(pk=expired.key.pk).update(expires_at=timezone.now())
    assert [keys.find(made.text) is not None for made in (revoked, expired, kept)] == [False, False, True]
    User.objects.update(is_active=False)
    assert keys.find(kept.text) is None


# Last use


def test_last_use_is_stored_once_a_minute_and_apart_from_the_request(user, django_assert_num_queries):
    made = make(user)
    keys.uses.flush()
    keys.find(made.text)
    assert ApiKey.objects.get().last_used_at is None
    keys.uses.flush()
    first = ApiKey.objects.get().last_used_at
    assert first is not None
    # Within the minute nothing is noted, and what another process noted is not stored.
    keys.find(made.text)
    with django_assert_num_queries(0):
        keys.uses.flush()
    keys.uses.note(made.key.pk)
    keys.uses.flush()
    assert ApiKey.objects.get().last_used_at == first
    ApiKey.objects.update(last_used_at=first - timedelta(seconds=61))
    keys.find(made.text)
    keys.uses.flush()
    assert ApiKey.objects.get().last_used_at > first - timedelta(seconds=1)


# The command


def run(*words):
    out, err = io.StringIO(), io.StringIO()
    call_command("api_key", *words, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_command_makes_a_key_and_prints_it_alone(user):
    out, err = run("create", "shop", "--owner", user.email.upper(), "--scope", "timers:read", "--days", "30")
    assert keys.find(out.strip()).scopes == {"timers:read"}
    assert "not shown again" in err
    assert out.strip() not in err
    assert timedelta(days=29) < ApiKey.objects.get().expires_at - timezone.now() < timedelta(days=31)


def test_command_makes_a_service_account_which_cannot_log_in():
    out, _ = run("create", "shop", "--owner", "shop@example.com", "--service-account")
    owner = User.objects.get()
    assert (owner.email, owner.has_usable_password(), owner.is_staff) == ("shop@example.com", False, False)
    # All but `admin`, if nothing else is said.
    assert keys.find(out.strip()).scopes == {"timers:read", "timers:write", "timers:bulk", "secrets"}
    run("create", "another", "--owner", "shop@example.com", "--service-account")
    assert User.objects.count() == 1


@each(
    ("words", "said"),
    [
        (["create", "shop", "--owner", "nobody@example.com"], "no user nobody@example.com"),
        (["create", "shop", "--owner", "nonsense", "--service-account"], "valid email"),
        (["create", " ", "--owner", "me@example.com"], "name of 1 to 100"),
        (["create", "shop", "--owner", "me@example.com", "--scope", "everything"], "invalid choice"),
        (["create", "shop", "--owner", "me@example.com", "--days", "0"], "1 to 36500"),
        (["revoke", "17"], "no API key 17; nothing was revoked"),
    ],
)
def test_command_refuses_in_a_sentence_and_makes_nothing(user, words, said):
    with pytest.raises(CommandError, match=re.escape(said)):
        run(*words)
    assert not ApiKey.objects.exists()
    assert User.objects.count() == 1


def test_command_lists_keys_without_the_keys_and_revokes_them(user):
    first, second = make(user), make(user, expires_at=timezone.now() + timedelta(days=1))
    ApiKey.objects.filter(pk=second.key.pk).update(name="a\x1b[2J")
    out, _ = run("list", "--owner", user.email)
    assert first.text not in out
    assert first.key.prefix in out
    # A control character does not reach the terminal.
    assert "\x1b" not in out
    out, _ = run("revoke", str(first.key.pk))
    assert out == f"shop ({first.key.prefix}…) is revoked\n"
    assert (keys.find(first.text), keys.find(second.text) is None) == (None, False)
    assert "revoked" in run("list")[0]
    with pytest.raises(CommandError):
        run("revoke", str(second.key.pk), "999")
    assert keys.find(second.text) is not None


# The admin

PAGE = "/admin/access/apikey/"


def add(client, **fields):
    return client.post(f"{PAGE}add/", {"name": "shop", "scopes": ["timers:read"]} | fields, follow=True)


def test_admin_makes_a_key_and_shows_it_once(admin_client, user):
    page = add(admin_client, owner=user.pk, scopes=["timers:read", "admin"]).content.decode()
    (text,) = set(re.findall(r"wts_live_[A-Za-z0-9]{40}", page))
    assert keys.find(text).scopes == {"timers:read", "admin"}
    row = ApiKey.objects.get()
    assert row.owner == user
    for address in (PAGE, f"{PAGE}{row.pk}/change/"):
        assert text not in admin_client.get(address).content.decode()


def test_admin_refuses_a_key_without_scopes_or_in_the_past(admin_client, user):
    for wrong in ({"scopes": []}, {"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}, {"name": ""}):
        assert add(admin_client, **{"owner": user.pk} | wrong).context["errors"]
    assert not ApiKey.objects.exists()


def test_admin_says_that_an_owner_has_all_the_keys_it_may_have(admin_client, client, user, monkeypatch):
    monkeypatch.setattr(keys, "KEYS_MOST", 1)
    make(user)
    assert "at most 1 keys in use" in add(admin_client, owner=user.pk).content.decode()
    assert ApiKey.objects.count() == 1


def test_admin_revokes_and_never_deletes(admin_client, user):
    made = make(user)
    admin_client.post(PAGE, {"action": "revoke", "_selected_action": [made.key.pk]})
    assert keys.find(made.text) is None
    assert admin_client.post(f"{PAGE}{made.key.pk}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.post(PAGE, {"action": "delete_selected", "_selected_action": [made.key.pk]}).status_code < 400
    assert ApiKey.objects.get().revoked_at is not None


def test_staff_without_all_rights_makes_and_sees_its_own_keys_only(client, admin_user):
    from django.contrib.auth.models import Permission

    staff = User.objects.create_user("staff@example.com", "x", is_staff=True)
    staff.user_permissions.set(Permission.objects.filter(content_type__app_label="access"))
    others = make(admin_user, Scope.ADMIN)
    client.force_login(staff)
    add(client, owner=admin_user.pk, scopes=["admin"])
    assert ApiKey.objects.exclude(pk=others.key.pk).get().owner == staff
    assert others.key.prefix not in client.get(PAGE).content.decode()
    client.post(PAGE, {"action": "revoke", "_selected_action": [others.key.pk]})
    assert keys.find(others.text) is not None
    assert client.get(f"{PAGE}{others.key.pk}/change/").status_code == 302


# Deleted users


def test_key_of_a_deleted_user_is_revoked(user):
    made = make(user)
    user.delete()
    assert keys.find(made.text) is None
    assert ApiKey.objects.get().revoked_at is not None


def test_audit_log_says_which_account_at_the_shell_made_a_key(user):
    call_command("api_key", "create", "shop", "--owner", user.email, stdout=io.StringIO())
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.through, entry.name) == ("key.created", "command", actor.shell_user())
