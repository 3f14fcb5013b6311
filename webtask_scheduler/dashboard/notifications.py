"""`/settings/notifications`: where an owner is told of failures, and what was sent there."""

import re
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import get_language, gettext_lazy
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.dashboard.frame import is_live, may_know_admin, show
from webtask_scheduler.dashboard.timers import unchanged_or
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler.models import Notification, NotificationChannel
from webtask_scheduler.scheduler.services import channels, notifying
from webtask_scheduler.scheduler.services.channels import ChannelError, NewChannel, TooManyChannelsError
from webtask_scheduler.vault import VaultError

SENT_SHOWN = 25


def _languages() -> list[tuple[str, str]]:
    """Return what a channel may be told in."""
    return [("", _("that of the service")), *settings.LANGUAGES]


class ChannelForm(forms.Form):
    """A channel to add or to edit; `services.channels` checks it."""

    kind = forms.ChoiceField(label=gettext_lazy("How"), choices=NotificationChannel.Kind.choices)
    address = forms.CharField(
        label=gettext_lazy("Address"),
        help_text=gettext_lazy("A mail address, the URL of a Slack incoming webhook, or a URL of yours."),
        required=False,
        strip=True,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    name = forms.CharField(label=gettext_lazy("Name"), required=False, widget=forms.TextInput(attrs={"maxlength": 200}))
    label = forms.CharField(
        label=gettext_lazy("Only timers with the label"),
        help_text=gettext_lazy("As key=value. None: all of your timers."),
        required=False,
        widget=forms.TextInput(attrs={"placeholder": "team=billing", "spellcheck": "false"}),
    )
    language = forms.ChoiceField(label=gettext_lazy("Language of its messages"), choices=_languages, required=False)
    on_dead_letter = forms.BooleanField(
        label=gettext_lazy("A call failed for good, or was missed"), required=False, initial=True
    )
    failures_in_row = forms.IntegerField(
        label=gettext_lazy("A recurring timer failed so many times in a row"),
        help_text=gettext_lazy("None: not told."),
        required=False,
        widget=forms.NumberInput(attrs={"min": channels.ROW_LEAST, "max": channels.ROW_MOST}),
    )
    on_recovery = forms.BooleanField(
        label=gettext_lazy("A recurring timer succeeded again, after you were told of its failure"), required=False
    )
    on_late = forms.BooleanField(label=gettext_lazy("Calls of the whole service are late"), required=False)

    @classmethod
    def of(cls, channel: NotificationChannel) -> "ChannelForm":
        """Return the form of a channel, without its address."""
        form = cls(initial={name: getattr(channel, name) for name in ("kind", *channels.EDITED)})
        form.keeps(channel)
        return form

    def keeps(self, channel: NotificationChannel) -> None:
        """Say that the address of this channel stays where none is given."""
        self.fields["address"].widget.attrs["placeholder"] = channel.shown_address
        self.fields["address"].help_text = _("Empty: it stays %(address)s.") % {"address": channel.shown_address}

    def new(self) -> NewChannel | None:
        """Return what was given; None if the form itself finds it wrong."""
        return NewChannel(**self.cleaned_data) if self.is_valid() else None

    def refuse(self, error: ChannelError) -> None:
        self.add_error(error.field if error.field in self.fields else None, error.messages)


@page
@require_safe
def notifications(request: HttpRequest) -> HttpResponse:
    """Show the channels, and the latest messages to them."""
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_notifications.html", _sent(request)))
    return _shown(request)


def _shown(request: HttpRequest, *, status: int = 200, **values: Any) -> HttpResponse:
    own = NotificationChannel.objects.filter(**caller_of(request).own())
    return show(
        request,
        "notifications.html",
        title=_("Notifications"),
        at="settings",
        status=status,
        channels=list(own.order_by("pk")[: channels.CHANNELS_MOST]),
        channels_most=channels.CHANNELS_MOST,
        admin_channels=_in_admin(request, NotificationChannel),
        may_be_late=channels.may_be_told_late(_user(request)),
        sends_mail=channels.sends_mail(),
        pause_seconds=settings.WEBTASK_NOTIFY_SECONDS,
        **({"form": ChannelForm(initial={"language": get_language()})} | _sent(request) | values),
    )


def _sent(request: HttpRequest) -> dict[str, Any]:
    """Return the latest messages, or those before the one that the query names, with what came of them."""
    before = request.GET.get("before", "")
    rows = Notification.objects.filter(**caller_of(request).own())
    # Ids fit PostgreSQL's bigint, and Python reads no number of thousands of digits.
    if not re.fullmatch(r"[0-9]{1,18}", before):
        before = ""
    if before:
        rows = rows.filter(pk__lt=int(before))
    found = list(rows.select_related("channel").order_by("-pk")[: SENT_SHOWN + 1])
    shown = [
        {"one": item.notification, "state": item.state, "error": item.error, "about": _about(item.notification)}
        for item in notifying.listed(found[:SENT_SHOWN])
    ]
    return {
        "sent": shown,
        "older": found[SENT_SHOWN - 1].pk if len(found) > SENT_SHOWN else None,
        "before": before,
        "admin_sent": _in_admin(request, Notification),
    }


def _in_admin(request: HttpRequest, model: type[Model]) -> str:
    """Return the address of the admin's list of all owners' rows; empty for people who may not see it."""
    meta = model._meta  # noqa: SLF001 - Django means it so
    may_view = is_open() or request.user.has_perm(f"{meta.app_label}.view_{meta.model_name}")
    if not (may_view and may_know_admin(request.user)):
        return ""
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist")


def _about(one: Notification) -> str:
    """Return the address of what a message is about; empty where that is no page."""
    gathered = one.gathered
    if "lost" in gathered:
        lost = gathered["lost"]
        if lost["count"] > 1:
            return reverse("dashboard:dead")
        first = lost["first"][0]
        return reverse("dashboard:delivery", args=[first["task_id"], first["number"]])
    for name in ("failing", "recovered"):
        if name in gathered:
            return reverse("dashboard:timer", args=[gathered[name]["first"][0]["task_id"]])
    return ""


def _user(request: HttpRequest) -> Any:
    """Return the person whose channels these are; None where nobody has logged in."""
    return request.user if request.user.is_authenticated else None


@page
@require_POST
def add_channel(request: HttpRequest) -> HttpResponse:
    """Add a channel."""
    form = ChannelForm(request.POST)
    new = form.new()
    status = 400
    if new is not None:
        try:
            channels.add(new, owner_id=caller_of(request).owner_id)
        except ChannelError as error:
            form.refuse(error)
            status = 409 if isinstance(error, TooManyChannelsError) else 400
        else:
            messages.success(request, _("The channel is added. Send a test to see that it works."))
            return redirect("dashboard:notifications")
    return _shown(request, form=form, status=status)


def _channel(request: HttpRequest, channel_id: int) -> NotificationChannel:
    """Return a channel of whoever asks. Raises Http404."""
    found = NotificationChannel.objects.filter(pk=channel_id, **caller_of(request).own()).first()
    if found is None:
        raise Http404
    return found


@page
@require_http_methods(["GET", "HEAD", "POST"])
def channel(request: HttpRequest, channel_id: int) -> HttpResponse:
    """Show a channel's form, or keep what it says."""
    found = _channel(request, channel_id)
    form, status = ChannelForm.of(found), 200
    if request.method == "POST":
        form, status = ChannelForm(request.POST), 400
        form.keeps(found)
        form.fields["kind"].required = False
        new = form.new()
        if new is not None:
            try:
                channels.edit(found.pk, form.cleaned_data, visible=caller_of(request).own())
            except NotificationChannel.DoesNotExist as error:
                raise Http404 from error
            except ChannelError as error:
                form.refuse(error)
            else:
                messages.success(request, _("The channel is changed."))
                return redirect("dashboard:notifications")
    return show(
        request,
        "channel.html",
        title=str(found),
        at="settings",
        status=status,
        channel=found,
        form=form,
        may_be_late=channels.may_be_told_late(_user(request)),
    )


@page
@require_POST
def act(request: HttpRequest, channel_id: int, action: str) -> HttpResponse:
    """Send a test to a channel, pause, resume or delete it."""
    found, visible = _channel(request, channel_id), caller_of(request).own()
    try:
        if action == "test":
            notifying.test(found.pk, visible=visible)
            messages.success(request, _("A test is on its way; what comes of it is listed below."))
        elif action in ("pause", "resume"):
            channels.switch(found.pk, paused=action == "pause", visible=visible)
            text = _("Nothing is sent there until it is resumed.") if action == "pause" else _("It is told again.")
            messages.success(request, text)
        elif action == "delete":
            channels.delete(found.pk, visible=visible)
            messages.success(request, _("The channel is deleted. What was sent there stays listed."))
        else:
            raise Http404
    except NotificationChannel.DoesNotExist as error:
        raise Http404 from error
    except (ChannelError, VaultError) as error:
        messages.error(request, error.messages[0] if isinstance(error, ChannelError) else str(error))
    return redirect("dashboard:notifications")
