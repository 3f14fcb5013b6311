"""What is said in the language of a request, and what never is."""

import io
import json

import pytest
from django.core.management import call_command, load_command_class
from django.utils import translation

from scripts import messages
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.models import Attempt, ErrorKind, State
from webtask_scheduler.scheduler.rules.recurrence import ScheduleError, check_cron, parse_duration
from webtask_scheduler.scheduler.tests.support.api import create, path, post
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.users.models import User
from webtask_scheduler.wording import joined, sentence, sentences, translated

LANGUAGES = ["ar", "de", "es", "fr", "pt-br"]


# Sentences that are made where no language is known.


def test_sentence_is_english_until_it_is_said_in_a_language():
    with pytest.raises(ScheduleError) as raised:
        parse_duration("P1Y")
    english = "Years and months have no fixed length; use cron for calendar months."
    with translation.override("de"):
        assert str(raised.value) == english
        assert translated(raised.value) not in ("", english)
    with translation.override("en"):
        assert translated(raised.value) == english


def test_sentence_in_a_sentence_is_said_in_the_language_too():
    with pytest.raises(ScheduleError) as raised:
        check_cron("61 * * * *")
    english = "The minute field '61' means nothing to cron; it takes 0 to 59, *, lists, ranges and steps."
    assert str(raised.value) == english
    with translation.override("fr"):
        said = translated(raised.value)
    assert "'61'" in said
    assert "minute field" not in said
    assert "lists" not in said


def test_sentence_by_number_takes_the_form_of_the_language():
    pattern = ("%(count)s delivery overdue", "%(count)s deliveries overdue")
    assert str(sentences(*pattern, 1, count=1)) == "1 delivery overdue"
    assert str(sentences(*pattern, 3, count=3)) == "3 deliveries overdue"
    with translation.override("ar"):
        forms = {translated(sentences(*pattern, number, count="N")) for number in (0, 1, 2, 3, 11, 100)}
    assert len(forms) >= 4


def test_joined_sentences_and_plain_texts():
    both = joined([sentence("A URL is required."), sentence("There is no such day or time.")])
    assert both == "A URL is required. There is no such day or time."
    with translation.override("es"):
        said = translated(both)
        assert (
            said
            == f"{translated(sentence('A URL is required.'))} {translated(sentence('There is no such day or time.'))}"
        )
        assert said != both
        assert translated("as it is") == translated(ValueError("as it is")) == "as it is"
        assert translated(ValueError()) == ""


# The API.


@pytest.mark.django_db
@each("language", LANGUAGES)
def test_problem_is_in_the_language_of_the_request(client, language):
    body = {"minutes": -1, "web_url": "example.com", "unknown": 1, "every": "P1Y"}
    english = post(client, body).json()
    answer = post(client, body, **{"accept-language": language})
    said = answer.json()
    assert answer["Content-Language"] == language
    assert "Accept-Language" in answer["Vary"]
    assert (said["type"], said["status"]) == (english["type"], english["status"])
    assert [error["field"] for error in said["errors"]] == [error["field"] for error in english["errors"]]
    assert said["title"] != english["title"]
    assert said["detail"] != english["detail"]
    for theirs, ours in zip(said["errors"], english["errors"], strict=True):
        assert theirs["detail"] != ours["detail"]


@pytest.mark.django_db
@each(
    ("wanted", "language"),
    [("de-AT,en;q=0.5", "de"), ("pt,en;q=0.1", "pt-br"), ("ja", "en"), ("*", "en"), ("xx-invalid;;", "en"), ("", "en")],
)
def test_language_is_the_first_of_ours_that_the_request_takes(client, wanted, language):
    assert client.get("/timer/nonsense", headers={"accept-language": wanted})["Content-Language"] == language


@pytest.mark.django_db
def test_request_in_one_language_does_not_change_the_next(client):
    client.get("/timer/nonsense", headers={"accept-language": "de"})
    assert client.get("/timer/nonsense").json()["title"] == "Not Found"


@pytest.mark.django_db
@each("language", LANGUAGES)
def test_machine_fields_and_stored_texts_are_not_translated(client, language, make_timer, delivery_of):
    timer = create(client, labels={"team": "billing"})
    delivery = delivery_of(make_timer())
    delivery.timer_id = timer["task_id"]
    made = client.get(path(timer), headers={"accept-language": language}).json()
    english = client.get(path(timer)).json()
    assert made.pop("reason") != english.pop("reason")
    assert {**made, "time_left_in_seconds": 0} == {**english, "time_left_in_seconds": 0}
    assert made["status"] == State.SCHEDULED.value


@pytest.mark.django_db
def test_message_of_an_attempt_stays_as_it_was_stored(client, delivery_of, make_timer):
    timer = make_timer(delay_seconds=-1)
    delivery = delivery_of(timer)
    message = "The answer was 503 Service Unavailable."
    Attempt.objects.create(
        delivery=delivery,
        number=1,
        meant_for=delivery.due_at,
        started_at=delivery.due_at,
        error=ErrorKind.STATUS,
        message=message,
    )
    delivery.attempts, delivery.started_at = 1, delivery.due_at
    delivery.save()
    body = client.get(f"/timer/{timer.pk}", headers={"accept-language": "ar"}).json()
    assert (body["attempts"][0]["error"], body["attempts"][0]["message"]) == ("status", message)
    assert message in body["reason"]
    assert not body["reason"].isascii()


@pytest.mark.django_db
def test_description_of_the_api_is_the_same_in_every_language(client, settings):
    # A command has no address of a demo receiver for its examples.
    settings.WEBTASK_DEMO_RECEIVER = ""
    english = client.get("/api/schema?format=json").json()
    for language in LANGUAGES:
        asked = client.get("/api/schema?format=json", headers={"accept-language": language})
        assert asked.json() == english, language
        assert client.get(f"/api/schema?format=json&lang={language}").json() == english, language
        with translation.override(language):
            out = io.StringIO()
            call_command("spectacular", format="openapi-json", stdout=out)
        assert json.loads(out.getvalue()) == english, language


@pytest.mark.django_db
def test_probes_speak_english(client):
    facts.forget()
    english = client.get("/readyz").json()["checks"]
    assert client.get("/readyz", headers={"accept-language": "de"}).json()["checks"] == english


# The admin.


@pytest.mark.django_db
def test_person_chooses_a_language_in_the_admin(client):
    client.force_login(User.objects.create_superuser("ada@example.com", "x"))
    page = client.get("/admin/scheduler/timer/", headers={"accept-language": "en"}).content.decode()
    assert 'action="/i18n/setlang/"' in page
    answer = client.post("/i18n/setlang/", {"language": "ar", "next": "/admin/scheduler/timer/"})
    assert answer["Location"] == "/admin/scheduler/timer/"
    page = client.get("/admin/scheduler/timer/", headers={"accept-language": "en"}).content.decode()
    assert '<html lang="ar" dir="rtl">' in page


@pytest.mark.django_db
@each("language", LANGUAGES)
def test_lists_of_the_admin_are_translated(client, language, make_timer):
    client.force_login(User.objects.create_superuser("ada@example.com", "x"))
    make_timer()
    for name in ("timer", "delivery", "attempt", "bulkoperation", "callstop", "signingsecret"):
        for place in ("", "add/"):
            answer = client.get(f"/admin/scheduler/{name}/{place}", headers={"accept-language": language})
            if answer.status_code in (302, 403):
                assert place == "add/"
                continue
            assert answer.status_code == 200
            assert answer["Content-Language"] == language
    page = client.get("/admin/django_celery_beat/periodictask/", headers={"accept-language": language}).content.decode()
    for english in (
        "Overdue",
        "In the next hour",
        "Scheduled",
        "Run selected tasks",
        "The beginning of an id",
        "due time",
    ):
        assert english not in page


# Commands.


@pytest.mark.django_db
def test_command_speaks_the_language_of_its_process():
    def said(language):
        out = io.StringIO()
        with translation.override(language):
            call_command("calls", "status", stdout=out)
        return out.getvalue()

    english = said("en")
    assert "No calls are stopped." in english
    for language in LANGUAGES:
        assert len(said(language).splitlines()) == len(english.splitlines())
        assert "No calls are stopped." not in said(language)


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
@pytest.mark.parametrize("words", ["calls", "prune_timers", "timer", "timer create", "timer list", "timer import"])
def test_help_of_a_command_can_be_shown(capsys, language, words):
    name, *rest = words.split()
    with translation.override(language), pytest.raises(SystemExit) as ended:
        load_command_class("webtask_scheduler.scheduler", name).run_from_argv(["manage.py", name, *rest, "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


# The translations themselves; `./scripts/check messages` says what is wrong with them.


def test_check_finds_what_is_missing_and_broken():
    text = messages.Text(None, "%(count)s timer", "%(count)s timers")

    def wrong(singular, plural, *flags):
        entry = messages.polib.POEntry(msgid=text.text, msgid_plural=text.plural, flags=list(flags))
        entry.msgstr_plural = {0: singular, 1: plural}
        return list(messages._wrong(text, entry))

    assert wrong("%(count)s Timer", "%(count)s Timer") == []
    assert wrong("ein Timer", "%(count)s Timer") == []
    assert wrong("", "%(count)s Timer") == ["is not translated"]
    assert wrong("%(count)s Timer", "%(zahl)s Timer") == ["has %(zahl)s, which its source has not"]
    assert wrong("%(count)s Timer", "%(count)s Timer", "fuzzy") == ["is marked as fuzzy"]
    plain = messages.Text(None, "Timer %(id)s of %(host)s")
    entry = messages.polib.POEntry(msgid=plain.text, msgstr="Timer %(id)s")
    assert list(messages._wrong(plain, entry)) == ["lacks %(host)s"]


def test_texts_are_found_in_code_and_templates():
    code = "_('a' 'b'); gettext_lazy('c'); ngettext('one', 'many', n); pgettext('where', 'd'); _(NAME); self._('e')"
    found = [(one.context, one.text, one.plural) for one in messages.texts_of_python(code)]
    assert found == [(None, "ab", ""), (None, "c", ""), (None, "one", "many"), ("where", "d", ""), (None, "e", "")]
    template = """{% load i18n %}{% translate "It's (one)" %}
      {% blocktranslate %}By {{ title }}{% endblocktranslate %}<p>gettext('not this')</p>"""
    assert [one.text for one in messages.texts_of_template(template)] == ["It's (one)", "By %(title)s"]
