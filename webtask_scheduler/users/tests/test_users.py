"""Accounts: an e-mail address and a password, whatever the case of the address."""

import getpass
import io

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import identify_hasher
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import override_settings

from config.settings import base
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.users.models import User

pytestmark = pytest.mark.django_db

ADD = "/admin/users/user/add/"
PASSWORD = "correct horse battery"


@pytest.fixture
def user():
    return User.objects.create_user("Ada@Example.com", PASSWORD)


# The manager


def test_user_is_stored_by_e_mail(user):
    assert User.objects.get() == user
    assert (str(user), user.is_staff, user.is_superuser, user.is_active) == ("Ada@example.com", False, False, True)
    assert user.check_password(PASSWORD)


def test_superuser_may_do_everything():
    user = User.objects.create_superuser("root@example.com", PASSWORD)
    assert (user.is_staff, user.is_superuser) == (True, True)


@each("email", ["", None])
def test_user_without_an_e_mail_is_refused(email):
    with pytest.raises(ValueError, match="needs an e-mail address"):
        User.objects.create_user(email, PASSWORD)


def test_user_without_a_password_cannot_log_in():
    user = User.objects.create_user("ada@example.com")
    assert not user.has_usable_password()
    assert authenticate(username="ada@example.com", password="") is None


def test_user_has_no_user_name(user):
    assert not hasattr(user, "username") or user.username is None
    assert User.USERNAME_FIELD == "email"


# Any case


@each("typed", ["Ada@example.com", "ada@example.com", "ADA@EXAMPLE.COM"])
def test_log_in_in_any_case(user, typed):
    assert authenticate(username=typed, password=PASSWORD) == user


@each("typed", ["ada@example.com ", "ada@example.co", "", None])
def test_log_in_as_somebody_else_fails(user, typed):
    assert authenticate(username=typed, password=PASSWORD) is None


def test_log_in_at_the_admin_in_any_case(client):
    User.objects.create_superuser("ada@example.com", PASSWORD)
    answer = client.post("/admin/login/", {"username": "ADA@example.com", "password": PASSWORD, "next": "/admin/"})
    assert (answer.status_code, answer.url) == (302, "/admin/")


@each("email", ["ada@example.com", "ADA@EXAMPLE.COM", "Ada@example.com"])
def test_second_account_in_another_case_is_refused_by_the_database(user, email):
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.create_user(email, PASSWORD)


@each("email", ["ada@example.com", "Ada@example.com"])
def test_second_account_in_another_case_is_an_error_of_the_form(admin_client, user, email):
    answer = admin_client.post(ADD, new_user(email))
    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors
    assert User.objects.filter(email__iexact=email).count() == 1


def test_validation_says_that_the_address_is_taken(user):
    with pytest.raises(ValidationError, match="A user with this e-mail address exists"):
        User(email="ADA@example.com", password="x").full_clean()


# createsuperuser


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def prompts(monkeypatch):
    """Return a function that runs `createsuperuser` and types answers at its prompts; returns what it asked."""

    def run(*answers, **options):
        asked, waiting = [], list(answers)

        def answer(prompt="Password: "):
            asked.append(str(prompt))
            return waiting.pop(0)

        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr(getpass, "getpass", answer)
        call_command("createsuperuser", stdin=Terminal(), stdout=io.StringIO(), stderr=io.StringIO(), **options)
        assert waiting == []
        return asked

    return run


def test_createsuperuser_asks_for_e_mail_and_password(prompts):
    asked = prompts("boss@example.com", PASSWORD, PASSWORD)
    assert [prompt.split(":")[0].strip() for prompt in asked] == ["E-mail address", "Password", "Password (again)"]
    user = User.objects.get(email="boss@example.com")
    assert (user.is_superuser, user.check_password(PASSWORD)) == (True, True)


def test_createsuperuser_asks_again_where_the_address_is_taken(prompts, user):
    prompts("Ada@example.com", "boss@example.com", PASSWORD, PASSWORD)
    assert User.objects.get(is_superuser=True).email == "boss@example.com"


def test_createsuperuser_asks_again_where_the_address_is_taken_in_another_case(prompts, user):
    prompts("ADA@EXAMPLE.COM", "boss@example.com", PASSWORD, PASSWORD)
    assert User.objects.get(is_superuser=True).email == "boss@example.com"


def test_createsuperuser_asks_again_where_the_passwords_differ(prompts):
    prompts("boss@example.com", PASSWORD, "something else", PASSWORD, PASSWORD)
    assert User.objects.get().check_password(PASSWORD)


def test_createsuperuser_without_a_terminal(monkeypatch):
    monkeypatch.setenv("DJANGO_SUPERUSER_EMAIL", "boss@example.com")
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)
    call_command("createsuperuser", interactive=False, stdout=io.StringIO())
    user = User.objects.get()
    assert (user.email, user.is_superuser, user.check_password(PASSWORD)) == ("boss@example.com", True, True)


def test_createsuperuser_without_a_terminal_needs_an_e_mail(monkeypatch):
    monkeypatch.delenv("DJANGO_SUPERUSER_EMAIL", raising=False)
    with pytest.raises(CommandError, match="--email"):
        call_command("createsuperuser", interactive=False)


# Passwords


def test_passwords_are_hashed_with_argon2_as_shipped():
    with override_settings(PASSWORD_HASHERS=base.PASSWORD_HASHERS):
        user = User.objects.create_user("ada@example.com", PASSWORD)
        assert identify_hasher(user.password).algorithm == "argon2"
        assert user.check_password(PASSWORD)


# The admin's pages


def new_user(email, **fields):
    return {"email": email, "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD} | fields


def test_admin_adds_a_user(admin_client, client):
    assert "username" not in admin_client.get(ADD).content.decode()
    answer = admin_client.post(ADD, new_user("new@example.com"))
    assert answer.status_code == 302
    assert authenticate(username="NEW@example.com", password=PASSWORD) == User.objects.get(email="new@example.com")


@each("wrong", [{"password2": "differs"}, {"email": "no address"}, {"password1": "", "email": ""}])
def test_admin_refuses_a_wrong_user(admin_client, wrong):
    count = User.objects.count()
    answer = admin_client.post(ADD, new_user("new@example.com") | wrong)
    assert answer.status_code == 200
    assert User.objects.count() == count


def test_admin_lists_finds_and_changes_users(admin_client, user):
    assert "Ada@example.com" in admin_client.get("/admin/users/user/", {"q": "ada@"}).content.decode()
    page = f"/admin/users/user/{user.pk}/change/"
    form = admin_client.get(page).context["adminform"].form
    fields = {"email": "ada@example.com", "first_name": "Ada", "is_active": "on"}
    dates = {"date_joined_0": f"{user.date_joined:%Y-%m-%d}", "date_joined_1": f"{user.date_joined:%H:%M:%S}"}
    assert "email" in form.fields
    assert admin_client.post(page, fields | dates).status_code == 302
    user.refresh_from_db()
    assert (user.email, user.first_name, user.check_password(PASSWORD)) == ("ada@example.com", "Ada", True)


# Deleting


def test_deleted_user_is_forgotten_and_stays_as_a_row(user):
    user.first_name, user.is_staff = "Ada", True
    user.save()
    assert user.delete() == (1, {"users.User": 1})
    row = User.objects.get()
    assert (row.email, row.first_name, row.is_active, row.is_staff) == (
        f"deleted-{user.pk}@users.invalid",
        "",
        False,
        False,
    )
    assert not row.has_usable_password()
    assert row.deleted_at is not None
    assert authenticate(username="Ada@example.com", password=PASSWORD) is None
    # The address is free again, and a second deletion does nothing.
    User.objects.create_user("ada@example.com", PASSWORD)
    assert row.delete() == (0, {})


def test_users_are_deleted_many_at_once(user):
    User.objects.create_user("bob@example.com", PASSWORD)
    assert User.objects.all().delete() == (2, {"users.User": 2})
    assert User.objects.filter(deleted_at=None).count() == 0
    assert User.objects.count() == 2


@each("door", ["page", "action"])
def test_admin_deletes_a_user_without_listing_what_the_user_owns(admin_client, user, make_timer, door):
    make_timer(owner_id=user.pk)
    page = "/admin/users/user/"
    if door == "page":
        asked = admin_client.get(f"{page}{user.pk}/delete/").content.decode()
        admin_client.post(f"{page}{user.pk}/delete/", {"post": "yes"})
    else:
        data = {"action": "delete_selected", "_selected_action": [user.pk]}
        asked = admin_client.post(page, data).content.decode()
        admin_client.post(page, data | {"post": "yes"})
    assert "Ada@example.com" in asked
    assert "timer " not in asked
    assert User.objects.get(pk=user.pk).deleted_at is not None
    assert f"deleted-{user.pk}" not in admin_client.get(page).content.decode()
    assert admin_client.get(f"{page}{user.pk}/change/").status_code == 302


def test_table_keeps_the_row_of_a_user_who_owns_a_timer(user, make_timer, sql):
    make_timer(owner_id=user.pk)
    sql("SET CONSTRAINTS ALL IMMEDIATE")
    with pytest.raises(IntegrityError), transaction.atomic():
        sql("DELETE FROM users_user WHERE id = %s", user.pk)
