"""The page of secrets, keys and display: what the API allows, and no more."""

import re

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from webtask_scheduler.access import keys
from webtask_scheduler.access.models import ApiKey, AuditEntry
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import SigningSecret

pytestmark = pytest.mark.django_db


def text_of(answer):
    assert "no-store" in answer["Cache-Control"]
    return answer.content.decode()


def deeds():
    return list(AuditEntry.objects.exclude(kind="user").order_by("pk").values_list("action", "owner_id"))


def test_secret_is_made_shown_once_and_removed(client):
    answer = client.post("/settings/secrets", {"hosts": "b.example\n*.a.example", "secret": ""})
    (value,) = re.findall(r"whsec_[A-Za-z0-9+/=]+", text_of(answer))
    secret = SigningSecret.objects.get()
    assert (secret.value, secret.hosts, secret.owner) == (value, ["*.a.example", "b.example"], None)
    shown = text_of(client.get("/settings"))
    assert value not in shown
    assert secret.hint in shown
    assert client.post(f"/settings/secrets/{secret.pk}/delete").status_code == 302
    assert client.post(f"/settings/secrets/{secret.pk}/delete").status_code == 404
    assert not SigningSecret.objects.exists()
    assert deeds() == [("secret.created", None), ("secret.deleted", None)]


def test_secret_that_the_api_refuses_is_refused(client):
    for fields, status, said in (
        ({"secret": "nonsense"}, 400, "whsec_"),
        ({"hosts": "not a host/"}, 400, "host"),
        ({"hosts": "\n".join(f"{number}.example" for number in range(30))}, 400, "20"),
    ):
        answer = client.post("/settings/secrets", fields)
        assert answer.status_code == status, fields
        (error,) = re.findall(r'<p class="error"[^>]*>([^<]*)', text_of(answer))
        assert said in error
    for _ in range(services.SECRETS_MOST):
        client.post("/settings/secrets", {})
    answer = client.post("/settings/secrets", {})
    assert answer.status_code == 409
    assert "already" in text_of(answer)
    assert SigningSecret.objects.count() == services.SECRETS_MOST


def test_secrets_are_each_owners_own(client, closed, user, root):
    secret = services.add_secret(None, owner_id=user.pk)
    assert client.get("/settings").status_code == 302
    client.force_login(root)
    assert secret.hint not in text_of(client.get("/settings"))
    assert client.post(f"/settings/secrets/{secret.pk}/delete").status_code == 404
    client.force_login(user)
    assert secret.hint in text_of(client.get("/settings"))
    assert client.post(f"/settings/secrets/{secret.pk}/delete").status_code == 302


def test_key_is_made_for_oneself_shown_once_and_revoked(client, closed, user):
    client.force_login(user)
    fields = {"name": "shop", "scopes": ["timers:write", "timers:read"], "expires_on": "2030-01-05"}
    answer = client.post("/settings/keys", fields)
    (text,) = re.findall(r"wts_live_[A-Za-z0-9]{40}", text_of(answer))
    key = ApiKey.objects.get()
    assert (key.owner, key.scopes) == (user, ["timers:read", "timers:write"])
    assert key.expires_at.isoformat() == "2030-01-05T00:00:00+00:00"
    assert keys.find(text).pk == user.pk
    keys.uses.flush()
    shown = text_of(client.get("/settings"))
    assert text not in shown
    assert key.prefix in shown
    assert "never" not in shown
    assert client.post(f"/settings/keys/{key.pk}/revoke").status_code == 302
    assert keys.find(text) is None
    shown = text_of(client.get("/settings"))
    assert "Revoked" in shown
    assert "/revoke" not in shown
    assert deeds() == [("key.created", user.pk), ("key.revoked", user.pk)]


def test_key_that_the_service_refuses_is_refused(client, closed, user, monkeypatch):
    client.force_login(user)
    given = {"name": "shop", "scopes": ["timers:read"]}
    for wrong in (
        {"name": " "},
        {"scopes": []},
        {"scopes": ["all"]},
        {"expires_on": "2020-01-01"},
        {"expires_on": "x"},
    ):
        answer = client.post("/settings/keys", given | wrong)
        assert answer.status_code == 400, wrong
        assert 'class="error"' in text_of(answer)
    assert not ApiKey.objects.exists()
    monkeypatch.setattr(keys, "KEYS_MOST", 1)
    assert [client.post("/settings/keys", given).status_code for _ in range(2)] == [200, 400]
    assert "at most 1 keys in use" in text_of(client.post("/settings/keys", given))
    assert ApiKey.objects.count() == 1


def test_keys_of_others_are_a_superusers(client, closed, user, root):
    other = get_user_model().objects.create_user("other@example.com", "x")
    made = keys.make(name="their program", owner_id=other.pk, scopes=["timers:read"]).key
    client.force_login(user)
    assert "their program" not in text_of(client.get("/settings"))
    assert client.post(f"/settings/keys/{made.pk}/revoke").status_code == 404
    client.force_login(root)
    assert "their program" in text_of(client.get("/settings"))
    assert "their program" not in text_of(client.get("/settings?mine=1"))
    assert client.post(f"/settings/keys/{made.pk}/revoke").status_code == 302
    assert ApiKey.objects.get().revoked_at <= timezone.now()


def test_open_service_gives_keys_to_superusers_only(client, user, root):
    """As its API: without a key, only a superuser's session has the scope `admin`."""
    for who in (None, user):
        if who:
            client.force_login(who)
        assert 'action="/settings/keys' not in text_of(client.get("/settings"))
        assert client.post("/settings/keys", {"name": "x", "scopes": ["timers:read"]}).status_code == 403
        assert client.post("/settings/keys/1/revoke").status_code == 403
    client.force_login(root)
    assert client.post("/settings/keys", {"name": "x", "scopes": ["timers:read"]}).status_code == 200
    assert ApiKey.objects.get().owner == root


def test_display_is_kept_in_the_browser(client):
    client.post("/settings/display", {"clock": "local"})
    shown = text_of(client.get("/"))
    assert 'data-clock="local"' in shown
    assert 'data-keys="off"' in shown
    client.post("/settings/display", {"clock": "nonsense", "keys": "1"})
    shown = text_of(client.get("/"))
    assert "data-clock" not in shown
    assert "data-keys" not in shown


def test_reading_changes_nothing(client):
    for path in ("secrets", "secrets/1/delete", "keys", "keys/1/revoke", "display"):
        assert client.get(f"/settings/{path}").status_code == 405
