"""What the manifests of deploy/kubernetes must hold beyond their schemas; these `./scripts/check kubernetes` checks."""

import ipaddress
import os
import re
import shlex
import subprocess
import sys

import pytest

from scripts import kubernetes
from scripts.processes import command
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, database_url

NOBODY = {
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(scope="module")
def manifests():
    if not kubernetes.can_render():
        pytest.skip("There is no kubectl here to render the manifests.")
    return kubernetes.render("example")


@pytest.fixture(scope="module")
def of(manifests):
    """Return a function that finds the manifests of some kinds, by their names."""
    return lambda *kinds: {each["metadata"]["name"]: each for each in manifests if each["kind"] in kinds}


def pod(manifest):
    return manifest["spec"]["template"]["spec"]


def containers(manifest):
    return [*pod(manifest)["containers"], *pod(manifest).get("initContainers", [])]


def labels(manifest):
    return manifest["spec"]["template"]["metadata"]["labels"]


def test_every_process_of_the_service_is_there(of):
    assert {"web", "worker", "upkeep", "beat", "flower"} == of("Deployment").keys()
    assert of("Job").keys() == {"migrate"}
    assert of("Deployment")["beat"]["spec"]["replicas"] == 2


def test_no_process_has_rights(of):
    for manifest in of("Deployment", "Job").values():
        given = pod(manifest)
        assert given["automountServiceAccountToken"] is False
        assert given["securityContext"]["runAsNonRoot"] is True
        assert given["securityContext"]["runAsUser"] > 0
        assert given["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not given.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert [volume["emptyDir"]["sizeLimit"] for volume in given["volumes"]] == ["64Mi"]
        for container in containers(manifest):
            assert container["securityContext"] == NOBODY
            assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_every_process_has_resources_probes_and_time_to_end(of):
    for name, manifest in of("Deployment", "Job").items():
        for container in containers(manifest):
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["resources"]["limits"].keys() == {"memory"}
        assert pod(manifest)["terminationGracePeriodSeconds"] >= 15
        if manifest["kind"] == "Deployment":
            (app,) = pod(manifest)["containers"]
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= app.keys()
        # Its own, or one line of the settings would set it: see base/pod.yaml.
        assert pod(manifest)["enableServiceLinks"] is False, name


def test_an_outage_of_the_broker_or_of_all_workers_takes_no_web_pod_away(of):
    (app,) = pod(of("Deployment")["web"])["containers"]
    assert {app[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "/healthz"
    }
    assert app["ports"] == [{"name": "http", "containerPort": 8000}]


def test_commands_are_ours(of):
    for name, manifest in of("Deployment").items():
        (app,) = pod(manifest)["containers"]
        assert app["command"] == ["python", "-m", "scripts.processes", name]
        # Raises for a name that it does not know.
        command(name, environment={})
        assert [each["command"] for each in pod(manifest).get("initContainers", [])] == (
            [["python", "manage.py", "migrate", "--check"]] if name != "flower" else []
        )


def probes(manifest, kind):
    (app,) = pod(manifest)["containers"]
    return app[kind]["exec"]["command"]


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["worker", "upkeep", "beat"])
def test_liveness_fails_for_a_process_that_does_not_work_and_not_for_a_database_that_is_away(of, name):
    def outcome(kind, url):
        words = [sys.executable if word == "python" else word for word in probes(of("Deployment")[name], kind)]
        words = [word.replace("python ", shlex.quote(sys.executable) + " ") for word in words]
        environment = os.environ | {"DATABASE_URL": url}
        return subprocess.run(words, cwd=CHECKOUT, env=environment, check=False, capture_output=True).returncode

    away = "postgres://nobody@127.0.0.1:1/none?connect_timeout=2"
    assert outcome("livenessProbe", away) == 0
    assert outcome("readinessProbe", away) == 75
    assert outcome("livenessProbe", database_url()) == 1
    assert outcome("startupProbe", database_url()) == 1


def test_names_of_the_environment_are_known(of):
    known = "".join(
        path.read_text() for path in [*CHECKOUT.glob("config/settings/*.py"), CHECKOUT / "scripts" / "processes.py"]
    )
    (settings,) = of("ConfigMap").values()
    (secrets,) = of("Secret").values()
    # Django's own, and Flower's own.
    own = {"DJANGO_SETTINGS_MODULE", "FLOWER_BASIC_AUTH"}
    for name in {*settings["data"], *secrets["data"]} - own:
        assert re.search(rf'"{name}"', known), f"{name} is read nowhere"
    assert settings["data"]["DJANGO_SETTINGS_MODULE"] == "config.settings.production"


def test_example_holds_no_secret_and_is_not_rendered_without_one(of):
    (secrets,) = of("Secret").values()
    assert set(secrets["data"].values()) == {""}
    assert not (kubernetes.FOLDER / "example" / kubernetes.SECRETS).exists()
    done = subprocess.run(
        ["kubectl", "kustomize", str(kubernetes.FOLDER / "example")], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "secrets.env" in done.stderr


def test_selectors_find_what_they_mean(of):
    deployments = of("Deployment")
    for kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler", "Service"):
        assert of(kind)
        for name, manifest in of(kind).items():
            spec = manifest["spec"]
            if kind == "HorizontalPodAutoscaler":
                assert spec["scaleTargetRef"]["name"] == name
                # Otherwise each apply would undo what the autoscaler did.
                assert "replicas" not in deployments[name]["spec"]
                continue
            selector = spec["selector"].get("matchLabels", spec["selector"])
            assert [found for found, each in deployments.items() if selector.items() <= labels(each).items()] == [name]
    for name, manifest in of("PodDisruptionBudget").items():
        least = of("HorizontalPodAutoscaler")[name]["spec"]["minReplicas"] if name != "beat" else 2
        assert manifest["spec"]["minAvailable"] < least


def chosen(policy, of):
    """Return which components a policy is about."""
    selector = policy["spec"]["podSelector"]
    excluded = [value for each in selector.get("matchExpressions", []) for value in each["values"]]
    return {
        name
        for name, each in of("Deployment", "Job").items()
        if selector["matchLabels"].items() <= labels(each).items() and name not in excluded
    }


def test_only_workers_call_out_and_only_to_public_addresses(of):
    policies = of("NetworkPolicy")
    everyone = of("Deployment", "Job").keys()
    assert chosen(policies["nothing-else"], of) == everyone
    assert policies["nothing-else"]["spec"].keys() == {"podSelector", "policyTypes"}
    assert chosen(policies["database"], of) == everyone - {"flower"}
    assert chosen(policies["broker"], of) == everyone - {"migrate"}
    assert chosen(policies["calls"], of) == {"worker"}
    assert chosen(policies["requests"], of) == {"web"}
    # Mail leaves upkeep, by the ports of mail, and reaches no machine until an overlay names one.
    assert chosen(policies["mail"], of) == {"upkeep"}
    (rule,) = policies["mail"]["spec"]["egress"]
    assert {each["port"] for each in rule["ports"]} == {465, 587}
    (to,) = rule["to"]
    assert network(to["ipBlock"]["cidr"]) == network("192.0.2.3/32")

    (rule,) = policies["calls"]["spec"]["egress"]
    blocks = [to["ipBlock"] for to in rule["to"]]
    for address in (
        "169.254.169.254",
        "169.254.20.10",
        "fd00:ec2::254",
        "127.0.0.1",
        "::1",
        "10.0.0.1",
        "10.96.0.1",
        "172.20.0.10",
        "192.168.1.1",
        "100.64.0.1",
        "fd12::1",
        "fe80::1",
        "64:ff9b::a00:1",
    ):
        assert not is_allowed(address, blocks), address
    assert is_allowed("93.184.216.34", blocks)
    assert is_allowed("2606:2800:220:1::1", blocks)
    # Each exception lies in what it is an exception to, or Kubernetes refuses the policy.
    for block in blocks:
        assert all(network(each).subnet_of(network(block["cidr"])) for each in block["except"])


def test_example_says_where_database_and_broker_are(of):
    placeholder = network("192.0.2.0/24")
    for name, port in (("database", 5432), ("broker", 6379)):
        (rule,) = of("NetworkPolicy")[name]["spec"]["egress"]
        assert [each["port"] for each in rule["ports"]] == [port]
        (to,) = rule["to"]
        assert not network(to["ipBlock"]["cidr"]).subnet_of(placeholder)


def network(text):
    return ipaddress.ip_network(text)


def is_allowed(address, blocks):
    found = ipaddress.ip_address(address)
    return any(
        found in network(block["cidr"]) and not any(found in network(each) for each in block["except"])
        for block in blocks
    )
