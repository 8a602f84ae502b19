"""The Docker engine: whether it can be used, and the one place that says what to do where it cannot."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence

from harness import shell
from harness.errors import MissingPrerequisite, Problem

WITHOUT = "everything but the images works without: executor process"
INSTALL = f"install Docker Engine with buildx (docs/images.md); {WITHOUT}"
# docker-bake.hcl has matrix targets and named contexts, which older ones do not know. 0.13 is what was tried.
BUILDX = (0, 13)
WAIT = 30  # seconds for the engine to answer


def problems(builds: bool = False) -> list[Problem]:
    """What keeps `docker` from being used, and with `builds` from building; empty where nothing does."""
    if shutil.which("docker") is None:
        return [Problem("docker is not on this machine", hint=INSTALL)]
    found = []
    try:
        shell.run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=WAIT, new_session=True)
    except MissingPrerequisite as error:
        found.append(_silent(error.problems[0].why or error.problems[0].what))
    if builds:
        found += _buildx()
    return found


def _silent(why: str) -> Problem:
    """The client is there, the engine does not answer: not started, or not ours to ask."""
    hint = f"start it (systemctl start docker), or see `docker context ls`; {WITHOUT}"
    if "permission denied" in why.lower():
        hint = f"join the group docker and log in again, or use a rootless engine; {WITHOUT}"
    return Problem("no Docker engine answers", why, hint)


def _buildx() -> list[Problem]:
    """buildx is there and new enough."""
    hint = "install Docker's own package docker-buildx-plugin, or your distribution's docker-buildx (docs/images.md)"
    wanted = ".".join(map(str, BUILDX))
    try:
        text = shell.run(["docker", "buildx", "version"], timeout=WAIT, new_session=True)
    except MissingPrerequisite as error:
        return [
            Problem(f"docker has no buildx, which builds the images; {wanted} or later", error.problems[0].why, hint)
        ]
    match = re.search(r"\bv?(\d+)\.(\d+)\.\d+", text)
    if match and (int(match[1]), int(match[2])) < BUILDX:
        return [Problem(f"buildx is {match[0]}, {wanted} or later is needed", hint=hint)]
    return []


def version() -> str:
    """The engine's and buildx's, in a few words."""
    server = run(["version", "--format", "{{.Server.Version}}"]).strip()
    return f"engine {server}, buildx {' '.join(run(['buildx', 'version']).split()[1:2])}"


def check(builds: bool = False) -> None:
    """Raises MissingPrerequisite with everything that `problems` finds."""
    if found := problems(builds):
        raise MissingPrerequisite.of(found)


def run(words: Sequence[str | os.PathLike[str]], timeout: float = 60) -> str:
    """One short docker call's output. Raises MissingPrerequisite: with the remedy where the engine is the reason."""
    try:
        return shell.run(["docker", *words], timeout=timeout)
    except MissingPrerequisite:
        check()
        raise
