"""The environments of trainer and handler, and in a checkout the harness's own, from hash-locked lists of packages.

Standard library only: `python3 -m harness.bootstrap harness train` runs before any environment exists. Prerequisites
are checked first and reported as one list. An environment is rebuilt when its lock changed; its stamp is written
last, so an interrupted set-up is seen and finished by the next call. Two calls at once wait for each other.

Installing is uv's work (parallel downloads, a cache that two processes may share, hard links between the three
environments, so torch lies on the disk once); it takes over pip's variables for mirrors and certificates.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError, MissingPrerequisite, Problem
from harness.paths import CACHE, IN_CHECKOUT, PRODUCT, environment, python_of
from harness.shell import run

ENVIRONMENTS = ("harness", "train", "serve", "neuron", "aws", "sdk2", "sdk3", "ui", "docs", "lmeval")
TORCH = "torch==2.13.0"
LOCKS = PRODUCT / "locks"
GIB = 1 << 30
# Measured on disk after set-up (docs/internals/measurements.md): 1.9 GB with the CPU wheel of torch;
# runs and assets add 1.5 GB.
DISK_GIB, DISK_CUDA_GIB, DISK_NEURON_GIB, MEMORY_GIB = 6, 14, 6, 8
# What torch 2.1.2 and torch_xla 2.1.0 ask for and do not import: a compiler for GPUs, tools for Google's cloud.
NEURON_WITHOUT: tuple[str, ...] = ("triton", "cloud-tpu-client", "google-api-core", "google-api-python-client")
NEURON_WITHOUT += ("google-auth", "google-auth-httplib2", "googleapis-common-protos", "httplib2", "oauth2client")
NEURON_WITHOUT += ("uritemplate", "pyasn1", "pyasn1-modules", "rsa", "cryptography", "cffi", "pycparser", "pyparsing")


def _is_locked_python() -> bool:
    """Whether this Python is of the version that the locks are made for."""
    return platform.python_version_tuple()[:2] == ("3", "11")


def prerequisites(environments: list[str]) -> list[Problem]:
    """What this machine lacks for setting up `environments`; empty when nothing does."""
    problems = []
    if sys.platform != "linux" or platform.machine() != "x86_64":
        problems.append(
            Problem(
                f"this is {sys.platform} on {platform.machine()}",
                "the Neuron images are linux/amd64, and the pinned wheels are too",
                "use a Linux x86-64 machine",
            )
        )
    if not IN_CHECKOUT:
        return problems + _python_for_environments() + _too_small(environments)
    if not _is_locked_python():
        problems.append(
            Problem(
                f"this Python is {platform.python_version()}",
                "the locks are made for 3.11",
                "install python3.11 with its venv package, or call: make PYTHON=/path/to/python3.11 …",
            )
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        problems.append(
            Problem("this Python has no venv", "ensurepip is missing", "Debian: apt install python3.11-venv")
        )
    problems += [
        Problem(f"{tool} is not on PATH", hint=f"install {tool}")
        for tool in ("git", "make")
        if shutil.which(tool) is None
    ]
    return problems + _too_small(environments)


def _python_for_environments() -> list[Problem]:
    """The harness runs on later Pythons, too; the environments of trainer and handler are locked for 3.11."""
    if _is_locked_python() or shutil.which("python3.11"):
        return []
    why = f"this one is {platform.python_version()}; the locks of trainer and handler are made for 3.11"
    return [Problem("there is no python3.11 on PATH", why, "install it; Debian: apt install python3.11")]


def existing(folder: Path) -> Path:
    """`folder`, or the nearest directory above that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _too_small(environments: list[str]) -> list[Problem]:
    problems = []
    missing = [e for e in environments if e in ENVIRONMENTS and not is_set_up(e)]
    if missing:
        cpu = find_torch_wheel() is not None or bool(os.environ.get("TORCH_INDEX"))
        need, free = (DISK_GIB if cpu else DISK_CUDA_GIB), shutil.disk_usage(existing(CACHE)).free / GIB
        need += DISK_NEURON_GIB if "neuron" in missing else 0
        if free < need:
            why = "" if cpu else "PyPI's build of torch brings 7 GB of CUDA libraries; TORCH_INDEX names another"
            problems.append(Problem(f"{free:.1f} GiB of disk are free, {need} are needed", why, "free some"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if memory < MEMORY_GIB * 0.93:  # a machine sold with 8 GB reports a little less
        problems.append(Problem(f"this machine has {memory:.1f} GiB of memory, {MEMORY_GIB} are needed"))
    return problems


def find_torch_wheel() -> Path | None:
    """The CPU wheel of torch in the directory that $WHEELS names; None where there is none."""
    folder = os.environ.get("WHEELS")
    found = sorted(Path(folder).glob("torch-2.13.0+cpu-cp311-*x86_64.whl")) if folder else []
    return found[0] if found else None


def _wanted_stamp(name: str) -> str:
    digest = hashlib.sha256(platform.python_version().encode() + str(PRODUCT).encode())
    for lock in ("bootstrap.txt", f"{name}.txt", "torch-cpu.txt"):
        digest.update((LOCKS / lock).read_bytes())
    return digest.hexdigest()


def is_set_up(name: str) -> bool:
    """Whether an environment is there, whole, and made from today's lock."""
    if name == "harness" and not IN_CHECKOUT:
        return True  # installed by pip
    return _stamp_of(name) == _wanted_stamp(name)


def _stamp_of(name: str) -> str:
    stamp = environment(name) / "setup-complete"
    return stamp.read_text() if stamp.exists() else ""


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """One set-up at a time; the second waits and says so."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "setup.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another {what} is running; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _uv_environment() -> dict[str, str]:
    """uv with pip's own settings: a user who has set up pip for a mirror has set up this too."""
    env = dict(os.environ, UV_NO_CONFIG="1", UV_PYTHON_DOWNLOADS="never", UV_LINK_MODE="hardlink")
    env.pop("VIRTUAL_ENV", None)
    for ours, theirs in {
        "UV_DEFAULT_INDEX": "PIP_INDEX_URL",
        "UV_INDEX": "PIP_EXTRA_INDEX_URL",
        "SSL_CERT_FILE": "PIP_CERT",
    }.items():
        if env.get(theirs) and not env.get(ours):
            env[ours] = env[theirs]
    env.setdefault("UV_CACHE_DIR", str(CACHE / "uv"))  # same file system, so that hard links work
    env.setdefault("UV_HTTP_TIMEOUT", env.get("PIP_DEFAULT_TIMEOUT", "120"))
    return env


def _uv(*args: str) -> None:
    # Two attempts: uv keeps what it has fetched, so the second one goes on where a broken connection ended.
    command = [str(python_of("harness")), "-m", "uv", *args]
    hint = "check the network; set PIP_INDEX_URL and PIP_CERT for a mirror; call again to go on"
    try:
        run(command, env=_uv_environment(), hint=hint)
    except MissingPrerequisite:
        run(command, env=_uv_environment(), hint=hint)


def ensure_environment(name: str) -> None:
    """Build `.venv` or `.venv-<name>` from its lock, unless its stamp says that it is built."""
    if is_set_up(name):
        return
    wanted = _wanted_stamp(name)
    folder = environment(name)
    if name == "harness" and Path(sys.prefix) == folder:  # never the branch that it sits on
        what = f"{folder.name} was made from another lock, or for another directory"
        raise MissingPrerequisite(what, "this command runs in it, so it cannot be made anew from here", "make setup")
    _say(f"setting up {folder.name} from locks/{name}.txt")
    (folder / "setup-complete").unlink(missing_ok=True)
    if name == "harness":
        run([sys.executable, "-m", "venv", "--clear", folder])
        run([python_of(name), "-m", "pip", "install", "-q", "--require-hashes", "-r", LOCKS / "bootstrap.txt"])
    else:
        ensure_environment("harness")  # it holds uv
        python = sys.executable if _is_locked_python() else "python3.11"
        _uv("venv", "--quiet", "--clear", "--python", python, str(folder))
    into = ["--quiet", "--python", str(python_of(name)), "--no-deps"]
    _uv("pip", "install", *into, "--require-hashes", "-r", str(LOCKS / f"{name}.txt"))
    if name in ("harness", "ui"):
        _link_product(folder)
    elif name in ("train", "serve", "lmeval"):  # neuron has an older torch in its lock, the clients of AWS need none
        _install_torch(into)
    (folder / "setup-complete").write_text(wanted)


def ensure(names: Sequence[str], say: Callable[[str], None]) -> None:
    """Build those of `names` that are not set up. Raises MissingPrerequisite with what this machine lacks for it."""
    missing = [name for name in names if not is_set_up(name)]
    if not missing:
        return
    if problems := prerequisites(missing):
        raise MissingPrerequisite.of(problems)
    say(f"setting up {', '.join(missing)}: some minutes, this once")
    with _alone("set-up"):
        for name in missing:
            ensure_environment(name)


def _link_product(folder: Path) -> None:
    """`.venv/bin/harness`, from any directory; an editable install would download a build back end for this."""
    (folder / "lib" / "python3.11" / "site-packages" / "neuron-harness.pth").write_text(f"{PRODUCT}\n")
    script = folder / "bin" / "harness"
    script.write_text(f"#!{folder}/bin/python\nfrom harness.cli.main import main\n\nmain()\n")
    script.chmod(0o755)


def _install_torch(into: list[str]) -> None:
    wheel, index = find_torch_wheel(), os.environ.get("TORCH_INDEX")
    if wheel is not None:
        source = ["--no-index", "--find-links", str(wheel.parent)]
    elif index:
        source = ["--default-index", index]
    else:
        _say(f"taking PyPI's build of {TORCH} (several GB; TORCH_INDEX names a smaller one: README.md)")
        _uv("pip", "install", *into, "--require-hashes", "-r", str(LOCKS / "torch-pypi.txt"))
        return
    _uv("pip", "install", *into, *source, "--require-hashes", "-r", str(LOCKS / "torch-cpu.txt"))


def lock() -> None:
    """Resolve locks/*.in again. The locks are for CPython 3.11 on Linux x86-64."""
    common = [
        "pip",
        "compile",
        "-q",
        "--upgrade",
        "--python-version",
        "3.11",
        "--generate-hashes",
        "--no-header",
    ]
    common += [
        "--python-platform",
        "x86_64-manylinux_2_28",
        "--annotation-style",
        "line",
        "--no-emit-find-links",
    ]
    wheel = find_torch_wheel()
    links = ["--find-links", str(wheel.parent)] if wheel else []
    for name in ("bootstrap", *ENVIRONMENTS):
        target = str(LOCKS / f"{name}.txt")
        source = [] if name == "harness" else [str(LOCKS / f"{name}.in")]
        if name in ("harness", "ui"):
            source += [str(PRODUCT / "pyproject.toml"), "--extra", "dev" if name == "harness" else "ui"]
        if name == "ui":  # what both have, both have in the same version
            source += ["--constraints", str(LOCKS / "harness.txt")]
        without = NEURON_WITHOUT if name == "neuron" else ("torch",)
        words = [word for package in without for word in ("--no-emit-package", package)]
        _uv(*common, *links, *words, *source, "-o", target)
    shared = ("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy")
    skip = [word for name in (*shared, "typing-extensions") for word in ("--no-emit-package", name)]
    _uv(*common, *skip, str(LOCKS / "torch.in"), "-o", str(LOCKS / "torch-pypi.txt"))


def clean(everything: bool) -> None:
    """Delete what can be made again, and say what each thing freed."""
    names = [".runs", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache"]
    if everything:
        names += [environment(name).name for name in ENVIRONMENTS] + [".cache"]
    total = 0
    for path in (PRODUCT / name for name in names):
        if path.is_dir():
            size = _size(path)
            total += size
            shutil.rmtree(path)
            _say(f"deleted {path.name}: {size / 1e6:.0f} MB")
    _say(f"{total / 1e6:.0f} MB freed (files that environments share are counted once)")


_counted: set[tuple[int, int]] = set()


def _size(folder: Path) -> int:
    """Bytes on disk; a file with several hard links counts the first time only."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            info = (Path(base) / name).lstat()
            if (info.st_dev, info.st_ino) not in _counted:
                _counted.add((info.st_dev, info.st_ino))
                total += info.st_blocks * 512
    return total


def _say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Parse the few words the Makefile says, do it, and print one list of what is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m harness.bootstrap", description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*ENVIRONMENTS, "djl", []])
    parser.add_argument("--lock", action="store_true")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--distclean", action="store_true")
    args = parser.parse_args()
    try:
        if args.clean or args.distclean:
            clean(everything=args.distclean)
            return 0
        problems = prerequisites(args.parts)
        if problems:
            raise MissingPrerequisite.of(problems)
        with _alone("set-up"):
            for name in (p for p in args.parts if p in ENVIRONMENTS):
                ensure_environment(name)
            if args.lock:
                lock()
            if "djl" in args.parts:
                run([python_of("harness"), "-m", "harness.assets.djl"], cwd=PRODUCT)
    except HarnessError as error:
        for line in (line for problem in error.problems for line in problem.lines()):
            _say(line)
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; the next call goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
