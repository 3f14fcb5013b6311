"""The whole API against its own schema: schemathesis, with all of its checks, on a real web process and database."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from webtask_scheduler.scheduler.tests.support.api import key_of
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, running

# A minute on two quiet cores, most of it spent by schemathesis on thinking of values.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(400), pytest.mark.django_db(transaction=True)]

HOOKS = "webtask_scheduler.scheduler.tests.support.schemathesis_hooks"
CONFIG = """
# The fields of a batch's items one by one, within and beyond their bounds: that is done with the single timer's.
[[operations]]
include-operation-id = "v1_scheduler_timer_batch_create"
phases.coverage.enabled = false
"""
# By the scheme of the document, so that it is left out where that is tried.
KEY = """
[auth.openapi.apiKey]
bearer = "{key}"
"""
# Bodies as JSON, and those of a form, are tested apart; see the hooks. The first has a key, where one is asked for, which
# is not to be revoked meanwhile.
OPTIONS = {
    "everything": ["--max-examples", "8", "--exclude-operation-id", "v1_scheduler_api_key_destroy"],
    "forms": ["--max-examples", "25", "--include-operation-id", "v1_scheduler_timer_create", "--phases", "fuzzing"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_api_is_as_its_schema_says(tmp_path, django_user_model, name):
    with running() as web:
        config = CONFIG
        if name == "everything":
            web.environment["WEBTASK_API_AUTH"] = "key"
            config += KEY.format(key=key_of(django_user_model.objects.create_user("ann@example.com")))
        web.start("web")
        check(web, tmp_path, name, config)


def check(web, tmp_path, name, settings):
    config = tmp_path / "schemathesis.toml"
    config.write_text(settings)
    words = ["--config-file", config, "run", f"http://127.0.0.1:{web.port}/api/schema", "--checks", "all"]
    more = ["--seed", "1", "--generation-database", "none", "--continue-on-failure", "--no-color"]
    environment = {"SCHEMATHESIS_HOOKS": HOOKS, "SCHEMATHESIS_FORMS": str(int(name == "forms"))}
    done = subprocess.run(
        [Path(sys.executable).parent / "schemathesis", *words, *more, *OPTIONS[name]],
        cwd=tmp_path,
        env=os.environ | environment | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "Traceback" not in web.log("web")
