"""The messages of notifications: what is gathered for one, added up, and said in the language of this thread. Pure.

What is gathered is a mapping that JSON can hold, with some of these parts:

- `lost`: deliveries that failed or were missed: `count`, `since` when, how many of which of the `hosts`, and the
  `first` of them.
- `failing`: recurring timers that failed so often in a row, and `recovered`: those that succeeded again; each with
  `count` and the `first` of them.
- `late`: since when calls are late, how many and by how many seconds; `on_time` instead once they no longer are.
- `test`: that a person asked for it.

A message names timers by name, or host and path, and id. It holds no query, no user and no password of a URL. What a
call failed with is stored in English, and stays so.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from webtask_scheduler.wording import Sentence, grouped, translated
from webtask_scheduler.wording import sentence as _
from webtask_scheduler.wording import sentences as ngettext

# So many are named of each; so many hosts are counted apart.
FIRST_MOST = 3
HOSTS_MOST = 10
OTHER_HOSTS = "other hosts"
SUBJECT_MAX_LENGTH = 150
NAME_SHOWN = 80
PATH_SHOWN = 80

Gathered = Mapping[str, Any]


class Message(NamedTuple):
    """What is said: in a line, in a few sentences, and for programs."""

    subject: str
    text: str
    body: dict[str, Any]


def place_of(web_url: str, host: str) -> str:
    """Return the host and path of a URL, by which a timer without a name is known."""
    try:
        path = urlsplit(web_url).path
    except ValueError:
        path = ""
    return _short(host + (path if path != "/" else ""), len(host) + PATH_SHOWN)


def merged(one: Gathered, other: Gathered) -> dict[str, Any]:
    """Return what two mappings gathered together; `other` is the later."""
    found = dict(one)
    for name, new in other.items():
        old = found.get(name)
        if name in ("lost", "failing", "recovered") and old:
            part = {"count": old["count"] + new["count"], "first": [*old["first"], *new["first"]][:FIRST_MOST]}
            if name == "lost":
                part["since"] = min(old["since"], new["since"], key=datetime.fromisoformat)
                part["hosts"] = _added(old["hosts"], new["hosts"])
            found[name] = part
        else:
            found[name] = new
    for now, before in (("on_time", "late"), ("late", "on_time")):
        if now in other:
            found.pop(before, None)
    return found


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    total = dict(one)
    for host, count in other.items():
        total[host] = total.get(host, 0) + count
    return few_hosts(total)


def few_hosts(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the hosts with most, and the sum of the others."""
    listed = sorted(counts.items(), key=lambda item: (item[0] == OTHER_HOSTS, -item[1], item[0]))
    few = dict(listed[:HOSTS_MOST])
    more = sum(count for _, count in listed[HOSTS_MOST:])
    if more:
        few[OTHER_HOSTS] = few.get(OTHER_HOSTS, 0) + more
    return few


def message(gathered: Gathered, *, channel: str, base_url: str, now: datetime) -> Message:
    """Return what is said of what was gathered; links are left out where no `base_url` says where the pages are."""
    parts: list[tuple[str, Sequence[str]]] = []
    if "test" in gathered:
        asked = translated(_("You asked for this at %(at)s. Nothing failed.", at=_moment(now)))
        parts.append((translated(_("Test: notifications reach you here")), [asked]))
    if "late" in gathered:
        parts.append(_late(gathered["late"], base_url))
    if "on_time" in gathered:
        since = translated(_("No due timer has waited for long since %(at)s.", at=_moment(now)))
        parts.append((translated(_("Calls are on time again")), [since]))
    if "lost" in gathered:
        parts.append(_lost(gathered["lost"], base_url))
    if "failing" in gathered:
        parts.append(_failing(gathered["failing"], base_url))
    if "recovered" in gathered:
        parts.append(_recovered(gathered["recovered"], base_url))
    heads = [head for head, _lines in parts]
    text = "\n\n".join("\n".join([f"{head}.", *lines]) for head, lines in parts)
    where = _("Sent by webtask_scheduler to %(channel)s.", channel=channel)
    if not channel:
        where = _("Sent by webtask_scheduler to this channel.")
    settings = _link(base_url, "/settings/notifications", translated(_("Which events are sent is set there")))
    body = {
        "type": "notification",
        "timestamp": now.astimezone(UTC).isoformat(),
        "events": [EVENTS[name] for name in EVENTS if name in gathered],
        "subject": _short("; ".join(heads), SUBJECT_MAX_LENGTH),
        "text": text,
        **{name: gathered[name] for name in EVENTS if name in gathered},
    }
    return Message(body["subject"], "\n".join([text, "", translated(where), *settings]), body)


# The parts, by the names that programs are given of them.
EVENTS = {
    "test": "test",
    "late": "service.late",
    "on_time": "service.on_time",
    "lost": "delivery.dead_letter",
    "failing": "timer.failing",
    "recovered": "timer.recovered",
}


def slack_body(said: Message) -> str:
    """Return the JSON that Slack takes: a name with `<!channel>` in it must not call everybody."""
    text = f"*{said.subject}*\n{said.text}"
    return json.dumps({"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")})


def _lost(part: Mapping[str, Any], base_url: str) -> tuple[str, list[str]]:
    count, first = part["count"], part["first"]
    if count == 1 and first:
        one = first[0]
        page = f"/timers/{one['task_id']}/deliveries/{one['number']}"
        if one["status"] == "failed":
            ended = _("It ended at %(at)s as failed.", at=_at(one["at"]))
            do = _("Mend what it calls, then send it again")
        else:
            ended = _("It ended at %(at)s as missed.", at=_at(one["at"]))
            do = _("Send it again, or dismiss it")
        lines = [f"{translated(ended)} {_identity(one)}"]
        return _ended(one), [*lines, *_todo(base_url, page, translated(do))]
    letters = ngettext(
        "%(count)s dead letter since %(at)s",
        "%(count)s dead letters since %(at)s",
        count,
        count=grouped(count),
        at=_moment_short(part["since"]),
    )
    number, hosts = translated(letters), part["hosts"]
    lines = []
    if len(hosts) == 1:
        head = f"{_host(next(iter(hosts)))}: {number}"
    else:
        head = number[:1].upper() + number[1:]
        listed = ", ".join(f"{_host(host)} {grouped(many)}" for host, many in hosts.items())
        lines = [translated(_("By host: %(hosts)s.", hosts=listed))]
    for one in first:
        ended = _("%(what)s, at %(at)s.", what=_ended(one), at=_at(one["at"]))
        lines.append(f"- {translated(ended)} {_identity(one)}")
    do = _("Mend what they call, then send them again")
    return head, [*lines, *_todo(base_url, "/dead", translated(do))]


def _failing(part: Mapping[str, Any], base_url: str) -> tuple[str, list[str]]:
    count, first = part["count"], part["first"]
    if count == 1 and first:
        page = f"/timers/{first[0]['task_id']}"
        latest = translated(_("The latest was at %(at)s.", at=_at(first[0]["at"])))
        do = translated(_("Mend what it calls, or pause it"))
        return translated(_in_row(first[0])), [f"{latest} {_identity(first[0])}", *_todo(base_url, page, do)]
    head = ngettext(
        "%(count)s timer failed several times in a row",
        "%(count)s timers failed several times in a row",
        count,
        count=grouped(count),
    )
    listed = [f"- {translated(_in_row(one))}. {_identity(one)}" for one in first]
    return translated(head), [*listed, *_todo(base_url, "/dead", translated(_("Mend what they call")))]


def _recovered(part: Mapping[str, Any], base_url: str) -> tuple[str, list[str]]:
    count, first = part["count"], part["first"]
    if count == 1 and first:
        page = f"/timers/{first[0]['task_id']}"
        well = translated(_("It succeeded at %(at)s.", at=_at(first[0]["at"])))
        head = translated(_("%(name)s is well again", name=_name(first[0])))
        return head, [f"{well} {_identity(first[0])}", *_link(base_url, page, translated(_("See it")))]
    head = translated(
        ngettext("%(count)s timer is well again", "%(count)s timers are well again", count, count=grouped(count))
    )
    well_at = [_("%(name)s succeeded at %(at)s.", name=_name(one), at=_at(one["at"])) for one in first]
    return head, [f"- {translated(said)} {_identity(one)}" for said, one in zip(well_at, first, strict=True)]


def _late(part: Mapping[str, Any], base_url: str) -> tuple[str, list[str]]:
    head = ngettext(
        "Calls are late: %(count)s due timer waits, the oldest for %(seconds)s s",
        "Calls are late: %(count)s due timers wait, the oldest for %(seconds)s s",
        part["count"],
        count=grouped(part["count"]),
        seconds=part["seconds"],
    )
    do = _("See whether beats and workers are at work")
    return translated(head), _todo(base_url, "/system", translated(do))


def _name(one: Mapping[str, Any]) -> str:
    return _short(one["name"] or one["place"], NAME_SHOWN)


def _host(host: str) -> str:
    return translated(_("other hosts")) if host == OTHER_HOSTS else _short(host, NAME_SHOWN)


def _ended(one: Mapping[str, Any]) -> str:
    """Return which timer's call was lost, and why."""
    name, attempts = _name(one), one["attempts"]
    if one["status"] == "missed":
        return translated(_("%(name)s was missed: it came later than its timer allows", name=name))
    if attempts:
        what = ngettext(
            "%(name)s failed after %(number)s attempt",
            "%(name)s failed after %(number)s attempts",
            attempts,
            name=name,
            number=attempts,
        )
    else:
        what = _("%(name)s failed without an attempt", name=name)
    error = _short(one["error"], 200).rstrip(".")
    return translated(what) + (f": {error}" if error else "")


def _in_row(one: Mapping[str, Any]) -> Sentence:
    """Return which timer failed how often."""
    return ngettext(
        "%(name)s failed %(number)s time in a row",
        "%(name)s failed %(number)s times in a row",
        one["in_row"],
        name=_name(one),
        number=one["in_row"],
    )


def _identity(one: Mapping[str, Any]) -> str:
    if one["name"]:
        return translated(_("(%(place)s, timer %(id)s)", place=one["place"], id=one["task_id"]))
    return translated(_("(timer %(id)s)", id=one["task_id"]))


def _todo(base_url: str, path: str, do: str) -> list[str]:
    return _link(base_url, path, do) or [f"{do}."]


def _link(base_url: str, path: str, say: str) -> list[str]:
    return [f"{say}: {base_url}{path}"] if base_url else []


def _at(text: str) -> str:
    return _moment(datetime.fromisoformat(text))


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _moment_short(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%H:%M} UTC"


def _short(text: str, most: int) -> str:
    """Return a text in one line, without control characters, cut in the end."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
