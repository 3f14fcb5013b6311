"""The page on signatures: what it says of a timer is what its calls have, and its functions are those of the how-to."""

import html
import re

import pytest

from scripts.docs import ROOT, blocks
from webtask_scheduler.dashboard.snippets import VERIFYING
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.tests.support.api import GIVEN, bearer, call_all, create, post
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.users.models import User

pytestmark = pytest.mark.django_db
HOW_TO = ROOT / "docs/how-to/verify-a-signature.md"


def shown(client, timer):
    """Return the page of a timer as text, without its tags."""
    answer = client.get(f"/timers/{timer['task_id']}/verify")
    assert answer.status_code == 200
    text = re.sub(r"<[^>]+>", " ", answer.content.decode().split("<main")[1].split("</main>")[0])
    return re.sub(r"\s+", " ", html.unescape(text))


def test_functions_are_those_of_the_how_to_and_each_can_be_copied(client):
    tested = {block.title: block.text.rstrip() for block in blocks(HOW_TO.read_text()) if block.title}
    files = (ROOT / "webtask_scheduler/dashboard/verifying").iterdir()
    assert {file.name.removesuffix(".txt"): file.read_text().rstrip() for file in files} == tested
    assert sorted(one.code for one in VERIFYING) == sorted(tested.values())
    page = client.get("/settings/verify").content.decode()
    for one in VERIFYING:
        button = f'</code></pre><button type="button" class="button small script" data-copy="code-{one.id}">'
        code = page.partition(f'<code id="code-{one.id}">')[2].partition(button)[0]
        assert html.unescape(code) == one.code, one.name
        assert all(f">{html.escape(code)}</code>" in page for _, code in one.bodies), one.name


def test_headers_are_those_of_the_latest_call(client, receiver):
    old, new = (services.add_secret(None, owner_id=None) for _ in range(2))
    timer = create(client, web_url=receiver.url("/a"), every="PT1H", headers={"X-Shop": "north"})
    services.run_now(timer["task_id"])
    before = shown(client, timer)
    assert "Of delivery #2, the latest " in before
    assert "If it were called at its very moment" in before
    (call,) = call_all(receiver)
    page = shown(client, timer)
    given = {name.lower(): value for name, value in call.headers.items()}
    assert f" {given['webhook-id']} Of delivery #2, the latest that was called" in page
    assert f" {given['webhook-timestamp']} Of its attempt 1" in page
    assert f" {given['webhook-id']}.{given['webhook-timestamp']}. " in page
    assert "are signed with 2 secrets" in page
    assert "v1,… v1,… Shortened" in page
    assert "not signed: X-Shop ." in page
    # Nothing that is secret, and no signature.
    secret = {old.value, new.value, old.hint, new.hint, *given["webhook-signature"].split(" "), "north"}
    assert len(given["webhook-signature"].split(" ")) == 2
    assert {word for word in secret if word in page} == set()


@each(
    "hosts, said",
    [
        ([], "Not signed There is no signing secret. Add a secret"),
        ([[]], "Signed Calls to a.shop.example are signed with one secret."),
        ([["a.shop.example"]], "Signed Calls to a.shop.example are signed with one secret."),
        ([["*.shop.example"], []], "Signed Calls to a.shop.example are signed with 2 secrets:"),
        ([["shop.example"]], "Not signed No signing secret is for calls to a.shop.example. Add a secret"),
    ],
)
def test_it_says_whether_calls_to_the_host_are_signed(client, hosts, said):
    timer = create(client, web_url="http://a.shop.example/hook")
    for one in hosts:
        services.add_secret(None, owner_id=None, hosts=one)
    page = shown(client, timer)
    assert said in page
    assert ("lack this header" in page) == said.startswith("Not")


def test_it_says_what_a_timer_gives_itself(client, subtests):
    full = shown(client, create(client, **GIVEN))
    assert "not signed: X-Shop , authorization ." in full
    assert "It follows redirects" in full
    assert "north" not in full
    plain = shown(client, create(client))
    assert not re.search("not signed:|follows redirects|no body", plain)
    assert "have no body" in shown(client, create(client, method="GET"))
    # As the page says, none can take the place of a header of the signature.
    for name in ("webhook-id", "Webhook-Signature", "WEBTASK-depth"):
        with subtests.test(name):
            own = {"web_url": "http://a.example/", "seconds": 60, "headers": {name: "x"}}
            assert post(client, own).status_code == 400


def test_staff_see_the_owners_situation_and_nobody_else_the_page(client, closed, user, root):
    timer = post(client, {"web_url": "http://a.example/", "seconds": 600}, **bearer(user)).json()
    services.add_secret(signing.new_secret(), owner_id=root.pk)
    client.force_login(root)
    assert "Not signed There is no signing secret. Only me@example.com can add one." in shown(client, timer)
    services.add_secret(signing.new_secret(), owner_id=user.pk)
    assert " Signed Calls to a.example are signed with one secret." in shown(client, timer)
    client.force_login(user)
    assert " Signed Calls to a.example" in shown(client, timer)
    client.force_login(User.objects.create_user("other@example.com", "x"))
    assert client.get(f"/timers/{timer['task_id']}/verify").status_code == 404
    client.logout()
    assert client.get(f"/timers/{timer['task_id']}/verify")["Location"].startswith("/login")


def test_timer_and_settings_lead_to_it(client, django_assert_max_num_queries):
    timer = create(client)
    address = f"/timers/{timer['task_id']}"
    assert f'href="{address}/verify"' in client.get(address).content.decode()
    assert 'href="/settings/verify"' in client.get("/settings").content.decode()
    assert client.post(f"{address}/verify").status_code == 405
    with django_assert_max_num_queries(8):
        client.get(f"{address}/verify")
