"""Runs inside an image: what a clean image has and has not. Prints one finding a line; nothing means clean.

    python3 inside.py train|serve

Standard library and Python 3.10 syntax only, since it also runs on the real Deep Learning Containers. The rules are
those of AWS's own checks of its images (aws/deep-learning-containers, test/sanity: stray files, credentials).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path("/opt/program")
SECRET = re.compile(rb"(AKIA|ASIA)[0-9A-Z]{16}|hf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|ACCESS_KEY)")


def stray_files():
    for folder in ("/tmp", "/var/tmp", "/root", "/"):
        for path in Path(folder).iterdir():
            if path.suffix == ".py" or path.name in (".bash_history", ".python_history", ".git"):
                yield f"stray file {path}"
    for folder in ("/root/.cache", "/var/lib/apt/lists"):
        if Path(folder).is_dir() and any(Path(folder).rglob("*.deb" if "apt" in folder else "*")):
            yield f"cache left in {folder}"


def credentials():
    for name in (".aws", ".netrc", ".docker/config.json", ".huggingface/token", ".pypirc", ".config/pip/pip.conf"):
        if (Path("/root") / name).exists():
            yield f"credentials /root/{name}"
    yield from (f"variable {name}" for name in os.environ if SECRET_VARIABLE.search(name))
    for path in [*PROGRAM.rglob("*"), *Path("/root").rglob("*"), Path("/etc/pip.conf"), Path("/etc/environment")]:
        if path.is_file() and path.stat().st_size < 1_000_000 and SECRET.search(path.read_bytes()):
            yield f"a secret in {path}"


def program(role):
    other = {"train": "serve", "serve": "train"}[role]
    for name in ("containers/entrypoint.py", "containers/contract.py", f"{role}/__init__.py"):
        if not (PROGRAM / name).is_file():
            yield f"{PROGRAM / name} is missing"
    if (PROGRAM / other).exists():
        yield f"{PROGRAM / other} does not belong here"
    for path in PROGRAM.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".json"):
            yield f"{path} does not belong here"


def packages():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if done.returncode:
        yield from (f"pip check: {line}" for line in done.stdout.splitlines())


def main():
    role = sys.argv[1]
    found = [*stray_files(), *credentials(), *program(role), *packages()]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
