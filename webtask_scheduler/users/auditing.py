"""What the audit log is told of users and groups: who was made, whose rights or password changed, who was deleted.

`User.save` and `User.delete` call it, so that every door is seen: the admin, commands, and code. Groups and permissions
are Django's own to write; it sends signals of them, inside its transactions. An `update()` of many rows, and a
statement of SQL, are seen by nobody.
"""

from collections.abc import Collection, Mapping
from typing import Any

from django.contrib.auth.hashers import is_password_usable
from django.contrib.auth.models import Group, Permission
from django.db.models.signals import m2m_changed, pre_delete

from webtask_scheduler.access import audit

# Who a user is, and what that user may do.
RIGHTS = ("email", "is_active", "is_staff", "is_superuser")
WATCHED = frozenset((*RIGHTS, "password"))


def connect(user_model: Any) -> None:
    """Connect the receivers; called once, when the apps are ready."""
    m2m_changed.connect(_members_changed, sender=user_model.groups.through)
    m2m_changed.connect(_members_changed, sender=user_model.user_permissions.through)
    m2m_changed.connect(_permissions_changed, sender=Group.permissions.through)
    pre_delete.connect(_group_goes, sender=Group)


def before(user: Any, update_fields: Collection[str] | None) -> Mapping[str, Any] | None:
    """Return what is stored of a user that is about to be saved, locked; None if nothing is that is watched."""
    if user.pk is None or not (update_fields is None or WATCHED & set(update_fields)):
        return None
    rows = type(user).objects.select_for_update().filter(pk=user.pk)
    found: Mapping[str, Any] | None = rows.values(*WATCHED).first()
    return found


def created(user: Any) -> None:
    """Record that a user was made."""
    after = _rights(user) | {"has_password": user.has_usable_password()}
    audit.record("user.created", kind="user", of=user.pk, owner_id=user.pk, after=after)


def saved(user: Any, before: Mapping[str, Any], *, is_rehash: bool) -> None:
    """Record what differs from what was stored. `is_rehash` says that a new hash is of the same password."""
    now = _rights(user)
    changed = [name for name in RIGHTS if before[name] != now[name]]
    if changed:
        audit.record(
            "user.edited",
            kind="user",
            of=user.pk,
            owner_id=user.pk,
            before={name: before[name] for name in changed},
            after={name: now[name] for name in changed},
        )
    if before["password"] != user.password and not is_rehash:
        audit.record(
            "user.password_changed",
            kind="user",
            of=user.pk,
            owner_id=user.pk,
            before={"has_password": is_password_usable(before["password"])},
            after={"has_password": user.has_usable_password()},
        )


def deleted(user: Any) -> None:
    """Record that a user is deleted, and who it was. Call it before that is forgotten."""
    audit.record("user.deleted", kind="user", of=user.pk, owner_id=user.pk, before=_rights(user))


def _rights(user: Any) -> dict[str, Any]:
    return {name: getattr(user, name) for name in RIGHTS}


def _members_changed(instance: Any, action: str, reverse: bool, model: Any, pk_set: set[Any] | None, **_: Any) -> None:
    """Record which groups or permissions users have got or lost, from whichever side it was done."""
    if action not in _WAYS:
        return
    if reverse:
        # From the group's or the permission's side.
        name = "groups" if isinstance(instance, Group) else "user_permissions"
        users = model.objects.filter(pk__in=pk_set) if pk_set is not None else instance.user_set.all()
        for user in users:
            _tell("user", user.pk, user.pk, action, {name: _names([instance])})
        return
    name = "groups" if model is Group else "user_permissions"
    things = model.objects.filter(pk__in=pk_set) if pk_set is not None else getattr(instance, name).all()
    _tell("user", instance.pk, instance.pk, action, {name: _names(things)})


def _permissions_changed(
    instance: Any, action: str, reverse: bool, model: Any, pk_set: set[Any] | None, **_: Any
) -> None:
    """Record which permissions groups have got or lost: their members have them too."""
    if action not in _WAYS:
        return
    if reverse:
        groups = model.objects.filter(pk__in=pk_set) if pk_set is not None else instance.group_set.all()
        for group in groups:
            _tell("group", group.pk, None, action, {"name": group.name, "permissions": _names([instance])})
        return
    things = model.objects.filter(pk__in=pk_set) if pk_set is not None else instance.permissions.all()
    _tell("group", instance.pk, None, action, {"name": instance.name, "permissions": _names(things)})


def _group_goes(instance: Group, **_: Any) -> None:
    permissions = _names(instance.permissions.all())
    audit.record(
        "group.deleted", kind="group", of=instance.pk, before={"name": instance.name, "permissions": permissions}
    )


# What was added is in `after`, what was taken away in `before`. All that there is can only be read before it is gone.
_WAYS = {"post_add": "after", "post_remove": "before", "pre_clear": "before"}


def _tell(kind: str, pk: Any, owner_id: int | None, action: str, what: Mapping[str, Any]) -> None:
    if any(value for name, value in what.items() if name != "name"):
        told: Any = {_WAYS[action]: what}
        audit.record(f"{kind}.edited", kind=kind, of=pk, owner_id=owner_id, **told)


def _names(things: Any) -> list[str]:
    """Return the names of groups, or of permissions as code asks for them."""
    return sorted(
        f"{thing.content_type.app_label}.{thing.codename}" if isinstance(thing, Permission) else str(thing)
        for thing in things
    )
