"""Runs scripts in a network of their own."""

import subprocess
import sys

import pytest


def run_apart(script: str, *setup: str) -> bytes:
    """Run a script in a network with nothing but loopback, after commands of a shell, and return what it printed."""
    apart = ["unshare", "--net", "sh", "-c", " && ".join(["ip link set lo up", *setup, 'exec "$@"']), "-"]
    try:
        subprocess.run([*apart, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespaces here")
    done = subprocess.run([*apart, sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
