"""`/import`: a crontab, or timers as JSON Lines or YAML, becomes timers: checked first, made when that is confirmed."""

import hashlib
from itertools import islice
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_http_methods

from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.new import zone_names
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler.api import importing
from webtask_scheduler.scheduler.rules import recurrence, timers_file
from webtask_scheduler.wording import translated

# What one form takes. `manage.py timer import` takes larger files.
BYTES_MOST = 1024 * 1024
LINES_MOST = 1000
# Lines of each kind that the page shows; the others are counted.
SHOWN = 100


class ImportForm(forms.Form):
    """A text or a file, and the time zone of a crontab."""

    text = forms.CharField(
        label=gettext_lazy("Crontab, JSON Lines or YAML"),
        required=False,
        strip=False,
        widget=forms.Textarea(
            attrs={
                "rows": 10,
                "spellcheck": "false",
                "placeholder": "0 9 * * MON-FRI curl -fsS https://example.com/report\n@hourly https://example.com/poll",
            }
        ),
    )
    file = forms.FileField(
        label=gettext_lazy("Or a file"), help_text=gettext_lazy("It takes the place of the text."), required=False
    )
    zone = forms.CharField(
        label=gettext_lazy("Time zone"),
        help_text=gettext_lazy("Of a crontab, until it sets CRON_TZ or TZ."),
        required=False,
        widget=forms.TextInput(attrs={"placeholder": "UTC", "list": "zones", "autocomplete": "off"}),
    )

    def clean_zone(self) -> str:
        try:
            return recurrence.check_timezone(self.cleaned_data["zone"].strip() or "UTC")
        except recurrence.ScheduleError as error:
            raise ValidationError(translated(error)) from error

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        if self.errors:
            return given
        file, text = given.get("file"), given.get("text", "")
        place = "file" if file else "text"
        if (file.size if file else len(text.encode(errors="replace"))) > BYTES_MOST:
            self.add_error(place, _too_much())
            return given
        if file:
            try:
                given["text"] = file.read().decode("utf-8-sig")
            except UnicodeDecodeError:
                self.add_error("file", _("This file is no text in UTF-8."))
                return given
        given["lines"] = importing.lines_of(given["text"])
        said = [line for line in given["lines"] if line.strip() and not line.strip().startswith("#")]
        if not said:
            self.add_error(place, _("There is no line yet that says anything."))
        elif len(said) > LINES_MOST and not timers_file.is_file(given["lines"]):
            values = {"most": LINES_MOST, "count": len(said)}
            text = _("At most %(most)s lines are taken here, and there are %(count)s. Split it, or use the command.")
            self.add_error(place, text % values)
        return given

    def entries(self, *, owner_id: int | None) -> list[importing.Entry]:
        """Return what becomes of the lines; none, with an error of the form, where they cannot be read at all."""
        given = self.cleaned_data
        place = "file" if given.get("file") else "text"
        try:
            found = importing.read(given["lines"], zone=given["zone"], owner_id=owner_id)
            entries = list(islice(found, LINES_MOST + 1))
        except timers_file.FileError as error:
            self.add_error(place, translated(error))
            return []
        if len(entries) > LINES_MOST:
            text = _("At most %(most)s timers are taken here. Split the file, or use the command.")
            self.add_error(place, text % {"most": LINES_MOST})
            return []
        return entries


def _too_much() -> str:
    text = _("At most %(most)s KiB are taken here. Split it, or use the command, which takes more.")
    return text % {"most": BYTES_MOST // 1024}


@page
@require_http_methods(["GET", "HEAD", "POST"])
def imports(request: HttpRequest) -> HttpResponse:
    """Show the form; then what each line would become; then, if that is confirmed, what it became.

    A check of what can be read is answered 200, whatever it says of the lines: it is what was asked for.
    """
    if request.method != "POST":
        return _shown(request, ImportForm())
    form = ImportForm(request.POST, request.FILES)
    if not form.is_valid():
        return _shown(request, form, status=400)
    given, owner_id = form.cleaned_data, caller_of(request).owner_id
    entries = form.entries(owner_id=owner_id)
    if form.errors:
        return _shown(request, form, status=400)
    # What is made is what was shown: a text that was changed since is shown again.
    mark, trouble, made = _mark(given), "", False
    if "apply" in request.POST:
        if request.POST.get("checked") != mark:
            trouble = _("The text was changed after it was checked. Look at it again; nothing was made.")
        else:
            try:
                entries = importing.store(entries, owner_id=owner_id)
                made = True
            except ValidationError as error:
                trouble = _("Nothing was made. %(why)s") % {"why": error.messages[0]}
    # The text of a file is shown too, so that it can be mended and need not be sent again.
    form = ImportForm(initial={"text": "\n".join(given["lines"]), "zone": given["zone"]})
    return _shown(
        request, form, status=409 if trouble else 200, mark=mark, trouble=trouble, **_told(entries, made=made)
    )


def _mark(given: dict[str, Any]) -> str:
    return hashlib.sha256("\n".join([given["zone"], *given["lines"]]).encode(errors="replace")).hexdigest()


def _told(entries: list[importing.Entry], *, made: bool) -> dict[str, Any]:
    """Return the entries by what becomes of them, so many of each as are shown, and a sentence for each kind."""
    new = [one for one in entries if one.is_new or one.is_made]
    kinds = {
        "refused": [one for one in entries if one.error],
        "new": new,
        "there": [one for one in entries if one.timer_id and not one.is_made],
        "notes": [one for one in entries if one.note],
    }
    count = len(new)
    if not (new or made):
        told = _("No line makes a new timer.")
    elif made:
        told = ngettext("%(count)s timer was made.", "%(count)s timers were made.", count)
    else:
        told = ngettext("%(count)s timer will be made.", "%(count)s timers will be made.", count)
    told %= {"count": count}
    if refused := len(kinds["refused"]):
        told += " " + ngettext("%(count)s line is not taken over.", "%(count)s lines are not taken over.", refused) % {
            "count": refused
        }
    return {
        "is_read": True,
        "made": made,
        "told": told,
        "may_apply": bool(new) and not made,
        "kinds": {name: found[:SHOWN] for name, found in kinds.items()},
        "counts": {name: len(found) for name, found in kinds.items()},
        "more": {name: max(0, len(found) - SHOWN) for name, found in kinds.items()},
    }


def _shown(request: HttpRequest, form: ImportForm, *, status: int = 200, **values: Any) -> HttpResponse:
    return show(
        request,
        "import.html",
        title=_("Import"),
        at="import",
        status=status,
        form=form,
        zones=zone_names(),
        lines_most=LINES_MOST,
        kib_most=BYTES_MOST // 1024,
        **values,
    )
