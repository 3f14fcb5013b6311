"""Render deploy/kubernetes as `kubectl apply -k` would, and hold each manifest against the schemas of Kubernetes.

    ./scripts/check kubernetes                    which calls this with the schemas at hand

Neither needs a cluster. Rendering needs `kubectl`; without it, each file that is a manifest by itself is checked.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes"
# What can be applied as it stands. The component `flower` is part of the example.
FOLDERS = ("base", "example")
# Merged into others, so not whole.
PATCHES = ("pod.yaml", "migrated.yaml")
# The oldest and the newest that the manifests are for.
VERSIONS = ("1.29", "1.37")
SECRETS = "secrets.env"

Manifest = dict[str, Any]


def can_render() -> bool:
    return shutil.which("kubectl") is not None


def render(folder: str) -> list[Manifest]:
    """Return the manifests of a folder. Its secrets are those of the example file, because there are no others."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(FOLDER, Path(scratch) / "kubernetes"))
        example = copy / folder / f"{SECRETS}.example"
        if example.exists():
            shutil.copy(example, copy / folder / SECRETS)
        words = ["kubectl", "kustomize", str(copy / folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{folder} cannot be rendered: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def written() -> list[Manifest]:
    """Return the manifests as they stand in the files, before anything is merged into them."""
    files = (path for path in sorted(FOLDER.glob("*/*.yaml")) if path.name not in (*PATCHES, "kustomization.yaml"))
    return [manifest for path in files for manifest in yaml.safe_load_all(path.read_text())]


def problems(manifest: Manifest) -> Iterator[str]:
    """Yield what the schemas of each version object to, fields that they do not know included."""
    # Late: its schemas are not in everybody's environment.
    import kubernetes_validate

    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"Kubernetes {version}: {error.message}"


def main() -> int:
    if can_render():
        manifests = [(folder, manifest) for folder in FOLDERS for manifest in render(folder)]
    else:
        manifests = [("as written", manifest) for manifest in written()]
        print("There is no kubectl here: what the folders are rendered to was NOT checked, only each file by itself.")
    found = [
        f"{where}: {manifest['kind']} {manifest['metadata']['name']}: {problem}"
        for where, manifest in manifests
        for problem in problems(manifest)
    ]
    print("\n".join(found) or f"{len(manifests)} manifests are valid for Kubernetes {' and '.join(VERSIONS)}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
