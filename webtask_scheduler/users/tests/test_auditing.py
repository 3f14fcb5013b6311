"""What is done to users and groups has an entry in the audit log, in its own transaction and without a password."""

import io

import pytest
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.db import transaction
from django.test import Client, override_settings

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.users.models import AppDevice, RecoveryDevice, User

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"
USERS = "/admin/users/user/"


@pytest.fixture
def ada():
    return User.objects.create_user("ada@example.com", PASSWORD)


@pytest.fixture
def latest(ada, admin_user):
    """Return a function that returns what was recorded of users and groups since it was called last."""
    seen = [0]

    def read():
        entries = list(AuditEntry.objects.filter(pk__gt=seen[0], kind__in=["user", "group"]).order_by("pk"))
        seen[0] = max([seen[0], *(one.pk for one in entries)])
        return [(one.action, one.before, one.after) for one in entries]

    assert [action for action, *_ in read()] == ["user.created"] * 2
    return read


def form_of(user, **changed):
    """Return what the user's page in the admin sends."""
    user = User.objects.get(pk=user.pk)
    given = {
        "email": user.email,
        "date_joined_0": f"{user.date_joined:%Y-%m-%d}",
        "date_joined_1": f"{user.date_joined:%H:%M:%S}",
        "groups": list(user.groups.values_list("pk", flat=True)),
        "user_permissions": list(user.user_permissions.values_list("pk", flat=True)),
    }
    given |= {name: "on" for name in ("is_active", "is_staff", "is_superuser") if getattr(user, name)}
    return {name: value for name, value in (given | changed).items() if value is not None}


def test_admin_makes_changes_and_deletes_a_user(admin_client, admin_user, latest):
    new = {"email": "new@example.com", "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    assert admin_client.post(f"{USERS}add/", new, REMOTE_ADDR="192.0.2.7").status_code == 302
    user = User.objects.get(email="new@example.com")
    rights = {"email": "new@example.com", "is_active": True, "is_staff": False, "is_superuser": False}
    assert latest() == [("user.created", None, rights | {"has_password": True})]
    entry = AuditEntry.objects.latest("pk")
    assert (entry.kind, entry.object_id, entry.owner_id) == ("user", str(user.pk), user.pk)
    assert (entry.user_id, entry.name, entry.through, entry.address) == (
        admin_user.pk,
        admin_user.email,
        "admin",
        "192.0.2.7",
    )
    page = f"{USERS}{user.pk}/change/"
    # Nothing that is watched: no entry.
    assert admin_client.post(page, form_of(user, first_name="New")).status_code == 302
    assert latest() == []
    assert admin_client.post(page, form_of(user, is_staff="on", is_superuser="on")).status_code == 302
    rights_before, rights_after = ({"is_staff": value, "is_superuser": value} for value in (False, True))
    assert latest() == [("user.edited", rights_before, rights_after)]
    assert admin_client.post(page, form_of(user, is_active=None, email="other@example.com")).status_code == 302
    assert latest() == [
        (
            "user.edited",
            {"email": "new@example.com", "is_active": True},
            {"email": "other@example.com", "is_active": False},
        )
    ]
    assert admin_client.post(f"{USERS}{user.pk}/delete/", {"post": "yes"}).status_code == 302
    before = {"email": "other@example.com", "is_active": False, "is_staff": True, "is_superuser": True}
    assert latest() == [("user.deleted", before, None)]
    assert set(AuditEntry.objects.exclude(user_id=None).values_list("through", "user_id")) == {("admin", admin_user.pk)}


def test_admin_changes_groups_and_permissions(admin_client, ada, latest):
    ops, dev = (Group.objects.create(name=name) for name in ("ops", "dev"))
    permission = Permission.objects.get(codename="view_timer")
    page = f"{USERS}{ada.pk}/change/"
    given = form_of(ada, groups=[ops.pk], user_permissions=[permission.pk])
    assert admin_client.post(page, given).status_code == 302
    assert latest() == [
        ("user.edited", None, {"groups": ["ops"]}),
        ("user.edited", None, {"user_permissions": ["scheduler.view_timer"]}),
    ]
    assert admin_client.post(page, form_of(ada, groups=[dev.pk])).status_code == 302
    assert latest() == [("user.edited", {"groups": ["ops"]}, None), ("user.edited", None, {"groups": ["dev"]})]
    # What the members of a group may do.
    group = f"/admin/auth/group/{dev.pk}/change/"
    assert admin_client.post(group, {"name": "dev", "permissions": [permission.pk]}).status_code == 302
    assert admin_client.post(group, {"name": "dev", "permissions": []}).status_code == 302
    told = {"name": "dev", "permissions": ["scheduler.view_timer"]}
    assert latest() == [("group.edited", None, told), ("group.edited", told, None)]
    assert admin_client.post(f"/admin/auth/group/{dev.pk}/delete/", {"post": "yes"}).status_code == 302
    assert latest() == [("group.deleted", {"name": "dev", "permissions": []}, None)]
    assert AuditEntry.objects.latest("pk").object_id == str(dev.pk)
    # From the other side, and all at once.
    ops.user_set.add(ada)
    ada.groups.clear()
    assert latest() == [("user.edited", None, {"groups": ["ops"]}), ("user.edited", {"groups": ["ops"]}, None)]
    permission.group_set.add(ops)
    assert latest() == [("group.edited", None, {"name": "ops", "permissions": ["scheduler.view_timer"]})]


def test_passwords_changed_have_an_entry_without_them(admin_client, admin_user, ada, latest):
    new = {"password1": "another good phrase", "password2": "another good phrase", "usable_password": "true"}
    page = f"{USERS}{ada.pk}/password/"
    assert admin_client.post(page, new).status_code == 302
    assert latest() == [("user.password_changed", {"has_password": True}, {"has_password": True})]
    assert admin_client.post(page, {"usable_password": "false", "unset-password": "1"}).status_code == 302
    assert latest() == [("user.password_changed", {"has_password": True}, {"has_password": False})]
    # One's own.
    own = {"old_password": "password", "new_password1": "a third good phrase", "new_password2": "a third good phrase"}
    assert admin_client.post("/admin/password_change/", own).status_code == 302
    assert latest() == [("user.password_changed", {"has_password": True}, {"has_password": True})]
    entry = AuditEntry.objects.latest("pk")
    assert (entry.object_id, entry.user_id) == (str(admin_user.pk), admin_user.pk)
    stored = repr(list(AuditEntry.objects.values()))
    assert "good phrase" not in stored
    assert User.objects.get(pk=admin_user.pk).password not in stored


def test_log_in_is_no_change_even_if_it_brings_the_hash_up_to_date(ada, latest):
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.PBKDF2PasswordHasher"]):
        old = make_password(PASSWORD)
    User.objects.filter(pk=ada.pk).update(password=old)
    hashers = ["django.contrib.auth.hashers.MD5PasswordHasher", "django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    with override_settings(PASSWORD_HASHERS=hashers):
        assert Client().login(username="ada@example.com", password=PASSWORD)
    ada.refresh_from_db()
    assert ada.password.startswith("md5$")
    assert ada.last_login is not None
    assert latest() == []


def test_what_is_rolled_back_has_no_entry(ada, latest):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        ada.is_superuser = True
        ada.save()
        ada.delete()
        raise ZeroDivisionError
    assert latest() == []
    assert not User.objects.get(pk=ada.pk).is_superuser


def test_commands_of_django_have_entries(latest):
    given = {"interactive": False, "email": "root@example.com", "stdout": io.StringIO()}
    call_command("createsuperuser", **given)
    ((action, _, after),) = latest()
    assert (action, after["is_superuser"], after["has_password"]) == ("user.created", True, False)


def test_users_deleted_many_at_once_have_an_entry_each_and_their_second_factors_go(ada, latest):
    AppDevice.objects.create(user=ada, name="app")
    RecoveryDevice.objects.create(user=ada, name="recovery codes")
    ada.groups.add(Group.objects.create(name="ops"))
    latest()
    User.objects.all().delete()
    actions = [action for action, *_ in latest()]
    assert (actions.count("user.deleted"), actions.count("user.edited")) == (2, 1)
    assert not AppDevice.objects.exists()
    assert not RecoveryDevice.objects.exists()
