"""README's blocks on a machine that has nothing: a fresh Debian in a chroot, a new user, an empty home directory.

    sudo python -m tests.readme_chroot

Root makes the chroot with debootstrap; what README says is done by a user without any rights. A mirror's settings and
WHEELS are handed on, nothing else. Writes docs/reference/readme-transcript.md: each command with its end and its
seconds, and the time from `git clone` to the first answer of a tuned model. Half an hour, most of it `make test`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.test_readme import blocks

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "readme-transcript.md"
# What README asks for: git, make, Python 3.11 with venv; Debian 12's Python is that one.
PACKAGES = "git,make,python3,python3-venv,ca-certificates"
HANDED_ON = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_DEFAULT_TIMEOUT",
    "MAVEN_MIRROR_URL",
    "HTTPS_PROXY",
    "NO_PROXY",
)
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
USER = 1000
FIRST = ("git clone --quiet /srv/neuron-harness.git", "make setup", "make demo", ".venv/bin/harness deploy")
"""What comes before the first answer of a model that stays."""
SHOWN = 30  # lines of a command's output


def make(folder: Path) -> None:
    """A Debian 12 with this repository's last commit in its user's home directory's place of work."""
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.copy(BUNDLE, folder / BUNDLE.relative_to("/"))
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    subprocess.run(["chroot", folder, "useradd", "--uid", str(USER), "--create-home", "user"], check=True)
    home = folder / "home/user"
    for entry in home.iterdir():
        entry.unlink()  # the skeleton's files: an empty home is empty
    subprocess.run(["git", "clone", "--quiet", "--bare", ROOT, folder / "srv/neuron-harness.git"], check=True)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", folder / "srv"], check=True)  # git asks for a known owner
    if wheels := os.environ.get("WHEELS"):
        shutil.copytree(wheels, folder / "opt/wheels")


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """What a running system has besides files; nothing of this machine's own."""
    done: list[Path] = []
    try:
        for kind, target in (("proc", folder / "proc"), ("tmpfs", folder / "dev/shm")):
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", kind, kind, target], check=True)
            done.append(target)
        yield
    finally:
        for target in reversed(done):
            subprocess.run(["umount", "--lazy", target], check=True)


def in_chroot(folder: Path, line: str, where: str) -> tuple[int, str, float]:
    """Exit code, output and seconds of a shell's line, as the user."""
    environment = {"HOME": "/home/user", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "USER": "user"}
    environment |= {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    environment |= {name: str(BUNDLE) for name in CERTIFICATES if name in os.environ}
    if os.environ.get("WHEELS"):
        environment["WHEELS"] = "/opt/wheels"
    words = [
        shutil.which("chroot") or "chroot",
        f"--userspec={USER}:{USER}",
        str(folder),
        "sh",
        "-c",
        f"cd {where} && {line}",
    ]
    began = time.monotonic()
    done = subprocess.run(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout, time.monotonic() - began


def steps(tests: bool) -> Iterator[tuple[str, str]]:
    """(where, line) in README's order, an endpoint between those that need none and those that ask it."""
    yield "/home/user", "git clone --quiet /srv/neuron-harness.git"
    work = "/home/user/neuron-harness"
    yield work, "make setup"
    found = blocks(ROOT)
    for _, tag, text in found:
        if tag == "run":
            yield from ((work, line) for line in text.splitlines() if line != "make test")
    yield work, ".venv/bin/harness deploy"
    for _, tag, text in found:
        if tag == "run-with-endpoint":
            yield from ((work, line) for line in text.splitlines())
    yield work, ".venv/bin/harness down --all"
    if tests:
        yield work, "make test"


def page(rows: list[tuple[str, int, str, float]], commit: str) -> str:
    """The transcript: times first, then each command with the end of what it said."""
    seconds = {line: taken for line, _, _, taken in rows}
    ask = next(line for line in seconds if " invoke " in line)
    whole = sum(seconds[line] for line in (*FIRST, ask))
    memory = psutil.virtual_memory().total / (1 << 30)
    lines = [
        "# README in an empty machine",
        "",
        "Written by `sudo python -m tests.readme_chroot`: a fresh Debian 12 in a",
    ]
    lines += [
        f"chroot, a user without rights, an empty home directory; commit {commit}, {time.strftime('%Y-%m-%d')}, on"
    ]
    lines += [
        f"{os.cpu_count()} cores with {memory:.0f} GiB. Load before it: see the first line.",
        "",
    ]
    lines += [f"From `git clone` to the first answer of a tuned model that stays: **{whole:.0f} s**.", ""]
    lines += ["| command | exit code | seconds |", "|---|---|---|"]
    lines += [f"| `{line}` | {code} | {taken:.1f} |" for line, code, _, taken in rows]
    for line, _, output, _ in rows:
        said = [one for one in output.splitlines() if one.strip()]
        cut = [f"… {len(said) - SHOWN} lines"] if len(said) > SHOWN else []
        lines += ["", "```text shown", f"$ {line}", *cut, *said[-SHOWN:], "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="make the chroot here and leave it; default: deleted afterwards")
    parser.add_argument(
        "--no-tests", action="store_true", help="leave out `make test`: five minutes instead of thirty"
    )
    args = parser.parse_args()
    if os.geteuid():
        sys.exit("only root may make a chroot")
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    scratch = Path(args.folder or tempfile.mkdtemp(prefix="readme-chroot-"))
    load = os.getloadavg()[0]
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o755)  # the root of a machine is for everybody
    rows: list[tuple[str, int, str, float]] = [("uptime, load before", 0, f"{load:.2f}", 0.0)]
    make(scratch)
    with mounted(scratch):
        for where, line in steps(not args.no_tests):
            code, output, taken = in_chroot(scratch, line, where)
            rows.append((line, code, output, taken))
            print(f"{line}: exit code {code}, {taken:.1f} s", flush=True)
            if code:
                print(output[-3000:])
                break
    failed = rows[-1][1] != 0
    if any(" invoke " in line for line, *_ in rows):
        PAGE.write_text(page(rows, commit), encoding="utf-8")  # with the exit code of what failed
        print(f"written: {PAGE.relative_to(ROOT)}")
    if args.folder is None and str(scratch) not in Path("/proc/self/mountinfo").read_text():
        shutil.rmtree(scratch)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
