"""Code to copy: a request as programs send it, and the functions by which a receiver verifies a signature."""

import json
import pprint
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from django.utils.translation import gettext as _

# As much of a text as a page shows, and the longest request that it shows as a program.
SHOWN_CHARACTERS, SNIPPET_CHARACTERS = 2000, 4000


class Snippet(NamedTuple):
    id: str
    name: str
    code: str
    # Of what verifies a signature: where the body's raw bytes are found, by framework.
    bodies: Sequence[tuple[str, str]] = ()


# The files of `verifying` are the blocks of docs/how-to/verify-a-signature.md, which a test runs in each language.
_VERIFYING = Path(__file__).parent / "verifying"
_BODIES: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = {
    ("Python", "verify.py"): [
        ("Django", "request.body"),
        ("Flask", "request.get_data()"),
        ("FastAPI", "await request.body()"),
    ],
    ("Node", "verify.mjs"): [("Express", 'express.raw({ type: "*/*" }) → request.body')],
    ("Go", "verify.go"): [("net/http", "io.ReadAll(request.Body)")],
    ("PHP", "verify.php"): [("PHP", "file_get_contents('php://input')")],
    ("Ruby", "verify.rb"): [("Rails", "request.raw_post")],
    ("Java", "Verify.java"): [("Spring", "@RequestBody byte[] body")],
}
VERIFYING = [
    Snippet(f"verify-{name.lower()}", name, (_VERIFYING / f"{file}.txt").read_text().rstrip(), bodies)
    for (name, file), bodies in _BODIES.items()
]


def snippets(url: str, body: Mapping[str, Any], *, with_key: bool, method: str = "POST") -> list[Snippet]:
    """Return a request with JSON to a URL in each language; `with_key` as a service takes it that asks for a key."""
    return [
        Snippet("curl", "curl", _curl(url, body, with_key=with_key, method=method)),
        Snippet("python", "Python", _python(url, body, with_key=with_key, method=method)),
        Snippet("javascript", "JavaScript", _javascript(url, body, with_key=with_key, method=method)),
    ]


def _curl(url: str, body: Mapping[str, Any], *, with_key: bool, method: str) -> str:
    lines = [f"curl -X {method} {shlex.quote(url)}", "  -H 'content-type: application/json'"]
    if with_key:
        lines.append('  -H "Authorization: Bearer $WEBTASK_KEY"')
    lines.append(f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}")
    return " \\\n".join(lines)


def _python(url: str, body: Mapping[str, Any], *, with_key: bool, method: str) -> str:
    given = pprint.pformat(dict(body), width=88, sort_dicts=False).replace("\n", "\n    ")
    key = '    headers={"Authorization": f"Bearer {os.environ[\'WEBTASK_KEY\']}"},\n' if with_key else ""
    imports = "import os\n\nimport requests" if with_key else "import requests"
    send = f"requests.{method.lower()}"
    return (
        f"{imports}\n\nanswer = {send}(\n    {json.dumps(url)},\n    json={given},\n{key}    timeout=10,\n)\n"
        'answer.raise_for_status()\nprint(answer.json()["task_id"])'
    )


def _javascript(url: str, body: Mapping[str, Any], *, with_key: bool, method: str) -> str:
    given = json.dumps(body, ensure_ascii=False, indent=2).replace("\n", "\n  ")
    key = ", authorization: `Bearer ${process.env.WEBTASK_KEY}`" if with_key else ""
    return (
        f"const answer = await fetch({json.dumps(url)}, {{\n  method: '{method}',\n"
        f"  headers: {{'content-type': 'application/json'{key}}},\n  body: JSON.stringify({given}),\n}});\n"
        "if (!answer.ok) throw new Error(await answer.text());\nconsole.log((await answer.json()).task_id);"
    )


def cut(text: str) -> str:
    """Return a text, or its beginning and its length: a body may be longer than a page should be."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return _("%(beginning)s… (%(count)s characters)") % {
        "beginning": text[:SHOWN_CHARACTERS],
        "count": f"{len(text):,}",
    }


def curl_of_call(url: str, *, method: str, headers: Mapping[str, str], body: str) -> str:
    """Return a call of this service as a person makes it."""
    lines = [f"curl -X {shlex.quote(method)} {shlex.quote(url)}"]
    lines += [f"  -H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()]
    if body:
        lines.append(f"  --data-raw {shlex.quote(body)}")
    return " \\\n".join(lines)


def curl_of_list(url: str, query: str, *, with_key: bool) -> str:
    """Return the request of the API that lists what a page lists; `with_key` where the service asks for a key."""
    key = ' \\\n  -H "Authorization: Bearer $WEBTASK_KEY"' if with_key else ""
    return f"curl {shlex.quote(f'{url}?{query}' if query else url)}{key}"
