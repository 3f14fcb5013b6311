"""The messages of notifications: what is gathered for one, added up, and said in plain English. Pure.

What is gathered is a mapping that JSON can hold, with some of these parts:

- `lost`: deliveries that failed or were missed: `count`, `since` when, how many of which of the `hosts`, and the
  `first` of them.
- `failing`: recurring timers that failed so often in a row, and `recovered`: those that succeeded again; each with
  `count` and the `first` of them.
- `late`: since when calls are late, how many and by how many seconds; `on_time` instead once they no longer are.
- `test`: that a person asked for it.

A message names timers by name, or host and path, and id. It holds no query, no user and no password of a URL.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

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
        parts.append(("Test: notifications reach you here", [f"You asked for this at {_moment(now)}. Nothing failed."]))
    if "late" in gathered:
        parts.append(_late(gathered["late"], base_url))
    if "on_time" in gathered:
        parts.append(("Calls are on time again", [f"No due timer has waited for long since {_moment(now)}."]))
    if "lost" in gathered:
        parts.append(_lost(gathered["lost"], base_url))
    if "failing" in gathered:
        parts.append(_failing(gathered["failing"], base_url))
    if "recovered" in gathered:
        parts.append(_recovered(gathered["recovered"], base_url))
    heads = [head for head, _ in parts]
    text = "\n\n".join("\n".join([f"{head}.", *lines]) for head, lines in parts)
    where = f"Sent by webtask_scheduler to {channel or 'this channel'}."
    settings = _link(base_url, "/settings/notifications", "Which events are sent is set there")
    body = {
        "type": "notification",
        "timestamp": now.astimezone(UTC).isoformat(),
        "events": [EVENTS[name] for name in EVENTS if name in gathered],
        "subject": _short("; ".join(heads), SUBJECT_MAX_LENGTH),
        "text": text,
        **{name: gathered[name] for name in EVENTS if name in gathered},
    }
    return Message(body["subject"], "\n".join([text, "", where, *settings]), body)


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
        lines = [f"It ended at {_at(one['at'])} as {one['status']}. {_identity(one)}"]
        page = f"/timers/{one['task_id']}/deliveries/{one['number']}"
        do = "Mend what it calls, then send it again" if one["status"] == "failed" else "Send it again, or dismiss it"
        return f"{_name(one)} {_what(one)}", [*lines, *_todo(base_url, page, do)]
    number = f"{count:,} dead letters since {_moment_short(part['since'])}"
    hosts = part["hosts"]
    lines = []
    if len(hosts) == 1:
        head = f"{_short(next(iter(hosts)), NAME_SHOWN)}: {number}"
    else:
        head = number[:1].upper() + number[1:]
        lines = ["By host: " + ", ".join(f"{_short(host, NAME_SHOWN)} {many:,}" for host, many in hosts.items()) + "."]
    lines += [f"- {_name(one)} {_what(one)}, at {_at(one['at'])}. {_identity(one)}" for one in first]
    return head, [*lines, *_todo(base_url, "/dead", "Mend what they call, then send them again")]


def _failing(part: Mapping[str, Any], base_url: str) -> tuple[str, list[str]]:
    count, first = part["count"], part["first"]
    listed = [f"- {_name(one)} failed {one['in_row']} times in a row. {_identity(one)}" for one in first]
    if count == 1 and first:
        head = f"{_name(first[0])} failed {first[0]['in_row']} times in a row"
        page = f"/timers/{first[0]['task_id']}"
        lines = [f"The latest was at {_at(first[0]['at'])}. {_identity(first[0])}"]
        return head, [*lines, *_todo(base_url, page, "Mend what it calls, or pause it")]
    return f"{count:,} timers failed several times in a row", [
        *listed,
        *_todo(base_url, "/dead", "Mend what they call"),
    ]


def _recovered(part: Mapping[str, Any], base_url: str) -> tuple[str, list[str]]:
    count, first = part["count"], part["first"]
    if count == 1 and first:
        lines = [f"It succeeded at {_at(first[0]['at'])}. {_identity(first[0])}"]
        return f"{_name(first[0])} is well again", [
            *lines,
            *_link(base_url, f"/timers/{first[0]['task_id']}", "See it"),
        ]
    listed = [f"- {_name(one)} succeeded at {_at(one['at'])}. {_identity(one)}" for one in first]
    return f"{count:,} timers are well again", listed


def _late(part: Mapping[str, Any], base_url: str) -> tuple[str, list[str]]:
    waits = "timer waits" if part["count"] == 1 else "timers wait"
    head = f"Calls are late: {part['count']:,} due {waits}, the oldest for {part['seconds']} s"
    return head, _todo(base_url, "/system", "See whether beats and workers are at work")


def _name(one: Mapping[str, Any]) -> str:
    return _short(one["name"] or one["place"], NAME_SHOWN)


def _what(one: Mapping[str, Any]) -> str:
    if one["status"] == "missed":
        return "was missed: it came later than its timer allows"
    attempts = one["attempts"]
    after = f" after {attempts} attempt{'' if attempts == 1 else 's'}" if attempts else " without an attempt"
    return f"failed{after}{': ' + _short(one['error'], 200).rstrip('.') if one['error'] else ''}"


def _identity(one: Mapping[str, Any]) -> str:
    place = f"{one['place']}, " if one["name"] else ""
    return f"({place}timer {one['task_id']})"


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
