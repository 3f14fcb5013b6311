"""What the pages say is what happens: their commands against a real service, their code in its own language."""

import shutil
import socket
import subprocess
import time
from base64 import b64encode

import pytest
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from scripts.docs import ROOT, blocks, unmarked
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.tests.support.pages import Reader
from webtask_scheduler.scheduler.tests.support.receiver import Receiver
from webtask_scheduler.scheduler.tests.support.service import running

# The API's guide first: it lists what is there, which then is what it has made.
PAGES = [ROOT / "docs/api.md", ROOT / "README.md"]
PAGES += sorted({*ROOT.glob("docs/*.md"), *ROOT.glob("docs/how-to/*.md")} - set(PAGES))
SIGNATURES = ROOT / "docs/how-to/verify-a-signature.md"


def stock_rows() -> None:
    """Have what somebody moves from django-celery-beat: a crontab, an interval, and one that cannot be moved."""
    nightly = CrontabSchedule.objects.create(minute="30", hour="2", timezone="Europe/Berlin")
    both = CrontabSchedule.objects.create(minute="0", hour="0", day_of_month="1", day_of_week="1")
    days = IntervalSchedule.objects.create(every=2, period="days")
    common = {"task": "shop.tasks.call_url", "args": '["http://127.0.0.1:9/x"]'}
    PeriodicTask.objects.create(name="nightly", crontab=nightly, **common)
    PeriodicTask.objects.create(name="poll", interval=days, last_run_at=timezone.now(), **common)
    PeriodicTask.objects.create(name="rare", crontab=both, **common)


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(240)
def test_commands_of_pages_do_what_the_pages_show(tmp_path):
    if not shutil.which("curl"):
        pytest.skip("the pages' commands need curl")
    stock_rows()
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    with running("web", "worker", "beat") as service, Receiver() as receiver:
        reader = Reader(
            tmp_path,
            environment=service.environment,
            addresses={
                "127.0.0.1:8000": f"127.0.0.1:{service.port}",
                "127.0.0.1:18998": f"127.0.0.1:{receiver.port}",
                "127.0.0.1:9000": f"127.0.0.1:{own}",
                '("127.0.0.1", 9000)': f'("127.0.0.1", {own})',
            },
        )
        try:
            found = [problem for page in PAGES for problem in reader.follow(page)]
        finally:
            reader.close()
    assert not found, "\n\n".join(found)
    moved = dict(PeriodicTask.objects.filter(task="shop.tasks.call_url").values_list("name", "enabled"))
    assert moved == {"nightly": False, "poll": False, "rare": True}


def test_reader_notices_what_is_not_as_shown(tmp_path):
    reader = Reader(tmp_path, environment={}, addresses={})
    one, other = "01a20f11-5c6b-732f-b4ff-b68e66c8f6de", "01a20f11-0000-732f-b4ff-b68e66c8f6de"
    shown = f'{{"task_id":"{one}","status":"failed","due_at":"2026-11-24T19:38:45Z","attempts":[1]}}'
    happened = shown.replace(one, other).replace("2026", "2031")
    assert not reader.compare(shown, happened)
    assert reader.compare(shown, shown), "the id was learned, and is another now"
    for change in (("failed", "missed"), ("[1]", "[]"), ("due_at", "due")):
        assert reader.compare(shown, happened.replace(*change)), change
    assert not reader.compare("made …: GET", "made 17: GET")
    assert reader.compare("made …: GET", "made 17: POST")
    assert reader.compare("HTTP/1.1 201 Created\nlocation: …", "HTTP/1.1 201 Created\nserver: x\n\n{}")


def test_block_without_a_mark_is_found():
    block = "```console\n$ rm -r x\n```\n"
    assert list(unmarked(f"# A page\n\n{block}"))
    assert list(unmarked(f"# A page\n\n<!-- commands: example -->\n{block}")), "an example says why"
    assert list(unmarked(f"# A page\n\n<!-- commands: tested by test_nowhere.py -->\n{block}"))
    assert not list(unmarked(f"<!-- commands: run -->\n\n# A page\n\n{block}"))
    assert not list(unmarked(f"# A page\n\n<!-- commands: example: it deletes x -->\n{block}"))
    assert not list(unmarked('# A page\n\n```json\n{"a": 1}\n```\n'))


# Each reads the secret, the id, the time, the signatures and the body in base64 from its arguments, and prints true or
# false.
PROGRAMS = {
    "python": (
        "main.py",
        """import base64, sys
from verify import is_genuine
secret, *headers, body = sys.argv[1:]
names = ("webhook-id", "webhook-timestamp", "webhook-signature")
print(str(is_genuine(secret, dict(zip(names, headers)), base64.b64decode(body))).lower())
""",
        ["python3", "main.py"],
    ),
    "js": (
        "main.mjs",
        """import { isGenuine } from "./verify.mjs";
const [secret, id, timestamp, signatures, body] = process.argv.slice(2);
const headers = { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures };
console.log(isGenuine(secret, headers, Buffer.from(body, "base64")));
""",
        ["node", "main.mjs"],
    ),
    "go": (
        "main.go",
        """package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
	header := http.Header{}
	for position, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
		header.Set(name, os.Args[2+position])
	}
	body, _ := base64.StdEncoding.DecodeString(os.Args[5])
	fmt.Println(IsGenuine(os.Args[1], header, body, 300*time.Second))
}
""",
        ["./main"],
    ),
    "php": (
        "main.php",
        """<?php
require 'verify.php';
[, $secret, $id, $timestamp, $signatures, $body] = $argv;
$headers = ['webhook-id' => $id, 'webhook-timestamp' => $timestamp, 'webhook-signature' => $signatures];
echo is_genuine($secret, $headers, base64_decode($body)) ? "true" : "false";
""",
        ["php", "main.php"],
    ),
    "ruby": (
        "main.rb",
        """require_relative "verify"
secret, id, timestamp, signatures, body = ARGV
headers = { "webhook-id" => id, "webhook-timestamp" => timestamp, "webhook-signature" => signatures }
puts genuine?(secret, headers, Base64.decode64(body))
""",
        ["ruby", "main.rb"],
    ),
    "java": (
        "Main.java",
        """import java.util.Base64;
import java.util.Map;

public final class Main {
    public static void main(String[] a) throws Exception {
        Map<String, String> headers = Map.of("webhook-id", a[1], "webhook-timestamp", a[2], "webhook-signature", a[3]);
        System.out.println(Verify.isGenuine(a[0], headers, Base64.getDecoder().decode(a[4]), 300));
    }
}
""",
        ["java", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "Main"],
    ),
}
COMPILERS = {"go": ["go", "build", "-o", "main", "main.go", "verify.go"], "java": ["javac", "Main.java", "Verify.java"]}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("language", PROGRAMS)
def test_signature_is_verified_in_each_language_as_the_page_shows(language, tmp_path):
    name, program, command = PROGRAMS[language]
    needed = COMPILERS.get(language, command)[0]
    if not shutil.which(needed):
        pytest.skip(f"{needed} is not installed: the page's {language} was not run")
    (block,) = [block for block in blocks(SIGNATURES.read_text()) if block.language == language]
    (tmp_path / block.title).write_text(block.text)
    (tmp_path / name).write_text(program)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "GO111MODULE": "off"}
    if language in COMPILERS:
        subprocess.run(COMPILERS[language], cwd=tmp_path, env=environment, check=True, timeout=200)

    def says(secret: str, message_id: str, timestamp: int | str, signatures: str, body: bytes) -> str:
        words = [*command, secret, message_id, str(timestamp), signatures, b64encode(body).decode()]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    old, new = signing.new_secret(), signing.new_secret()
    body, now = '{"text": "§ 1: größer"}'.encode(), int(time.time())

    def signed(*secrets: str, at: int = now) -> str:
        return signing.signature(secrets, message_id="01a2", timestamp=at, body=body)

    assert says(old, "01a2", now, signed(old), body) == "true"
    assert says(new, "01a2", now, signed(old, new), body) == "true", "the second of two"
    assert says(new, "01a2", now, signed(old), body) == "false", "another secret"
    assert says(old, "01a2", now, signed(old), body + b" ") == "false", "another body"
    assert says(old, "01a3", now, signed(old), body) == "false", "another id"
    assert says(old, "01a2", now - 1000, signed(old, at=now - 1000), body) == "false", "long ago"
    assert says(old, "01a2", now, "v1,", body) == "false", "no signature"
    # Nobody without a secret must be able to break a receiver.
    for digits in (20, 400, 5000):
        assert says(old, "01a2", "9" * digits, signed(old), body) == "false", "no time"
