"""The images: their names and tags, how they are built, and what is in them. docker-bake.hcl owns the rest.

A tag names stack and revision, so that it never has to mean two things: `sdk2.20-g1a2b3c4d5e6f` for the newest commit
that changed a source of the images, `sdk2.20-c1a2b3c4d5e6f` (a hash of the sources) where the tree differs from it;
`-cpu` in the middle for images on the stand-ins.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import shell
from harness.assets import djl
from harness.errors import MissingPrerequisite
from harness.images import engine
from harness.paths import CACHE, PRODUCT
from harness.reporter import Reporter
from harness.spec import stacks
from harness.spec.profile import LOCAL

ROLES = ("train", "serve")
# What an image is made of: its tag changes with these and with nothing else.
SOURCES = ("containers", "train", "serve", "locks", "docker-bake.hcl", ".dockerignore")
DEBIAN_IMAGE = "neuron-harness/debian:bookworm"
# Bytes free where the engine keeps its images. A DLC is 14 GB packed (its own build's baseline) and unpacks to more.
# Both stand-ins and the builder's cache were 4 GB; with PyPI's torch for CUDA an image is 5.5 GB, pip's cache 4.
DISK_DLC, DISK_STAND_IN, DISK_STAND_IN_CUDA = 60_000_000_000, 6_000_000_000, 20_000_000_000
DISK_AGAIN = 2_000_000_000  # with the base there: our layers, and the changed lock of a stand-in


@dataclass(frozen=True)
class Layer:
    """One layer of an image: bytes unpacked, and the instruction that made it."""

    bytes: int
    made_by: str


@dataclass(frozen=True)
class Build:
    """What to build: `registry` is the prefix of the names, as ACCOUNT.dkr.ecr.REGION.amazonaws.com."""

    stack: str = stacks.DEFAULT
    stand_in: bool = False
    registry: str = LOCAL.image("").rstrip("/")
    ca_bundle: Path | None = None
    dlc_region: str = ""

    @property
    def targets(self) -> list[str]:
        end = "-cpu" if self.stand_in else ""
        return [f"{role}-{self.stack.replace('.', '-')}{end}" for role in ROLES]

    def name(self, role: str) -> str:
        """The image's name and tag."""
        return f"{self.registry}/neuron-{role}:{tag(self.stack, self.stand_in)}"


def tag(stack: str, stand_in: bool) -> str:
    """What distinguishes this build of a stack."""
    return f"{stack}{'-cpu' if stand_in else ''}-{revision()}"


def is_for_aws(name: str, stack: str) -> bool:
    """Whether a tag is one of `stack`'s on the Deep Learning Containers, and not on the stand-ins."""
    return name.startswith(f"{stack}-") and not name.startswith(f"{stack}-cpu-")


def revision() -> str:
    """g<commit>, or c<hash of the sources> where they differ from it or there is no git."""
    if (PRODUCT / ".git").exists() and shutil.which("git"):
        changed = shell.run(["git", "status", "--porcelain", "--", *SOURCES], cwd=PRODUCT, timeout=60)
        if not changed.strip():
            commit = shell.run(["git", "log", "-1", "--format=%H", "--", *SOURCES], cwd=PRODUCT, timeout=60).strip()
            return f"g{commit[:12]}"
    return f"c{content_hash(PRODUCT)[:12]}"


def content_hash(root: Path) -> str:
    """SHA-256 over the sources' names, modes and bytes."""
    digest = hashlib.sha256()
    for path in _files(root):
        mode = "x" if os.access(path, os.X_OK) else "-"
        digest.update(f"{path.relative_to(root).as_posix()}\0{mode}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for name in SOURCES:
        path = root / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (p for p in found if p.is_file() and "__pycache__" not in p.parts)


def on_this_machine(stack: str, stand_in: bool) -> dict[str, str]:
    """The images of this revision, by the plan's placeholders. Raises MissingPrerequisite if one is not built."""
    build = Build(stack, stand_in)
    for role in ROLES:
        if not is_here(build.name(role)):
            hint = f"run: harness build{' --stand-in' if stand_in else ''}"
            raise MissingPrerequisite(f"no image {build.name(role)}", "this revision is not built here", hint)
    return {f"{role}_image": build.name(role) for role in ROLES}


def is_here(name: str) -> bool:
    """Whether the engine has an image of that name."""
    return bool(engine.run(["image", "ls", "--quiet", name]).strip())


def environment(build: Build, wheels: Path | None) -> dict[str, str]:
    """docker-bake.hcl's variables, besides what the user's environment has (proxies are BuildKit's own)."""
    env = dict(os.environ, REVISION=revision(), REGISTRY=f"{build.registry}/", BUILDX_NO_DEFAULT_ATTESTATIONS="1")
    env["DJL_JARS"] = str(djl.jars_folder(CACHE))
    bundle = build.ca_bundle or next(
        (Path(os.environ[k]) for k in ("PIP_CERT", "REQUESTS_CA_BUNDLE") if os.environ.get(k)), None
    )
    if bundle is not None:
        env["CA_BUNDLE"] = str(bundle)
    if wheels is not None:
        env["WHEELS"] = str(wheels)
    if build.dlc_region:
        env["DLC_REGION"] = build.dlc_region
    return env


def command(build: Build, show_only: bool = False) -> list[str]:
    """The buildx call. A proxy that the user's environment names is the build's, too."""
    words = ["docker", "buildx", "bake", "--file", str(PRODUCT / "docker-bake.hcl")]
    if show_only:
        words.append("--print")
    else:
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
            if value := os.environ.get(name) or os.environ.get(name.lower()):
                words += ["--set", f"*.args.{name}={value}"]
        words += ["--load", "--progress", "plain"]
    return words + build.targets


def printed(build: Build) -> str:
    """What would be built, as JSON."""
    engine.check(builds=True)
    return shell.run(command(build, show_only=True), cwd=PRODUCT, env=environment(build, None), timeout=120)


def build(what: Build, reporter: Reporter, docker_config: Path | None = None) -> dict[str, list[Layer]]:
    """Build both images; the layers of each, the base's first.

    `docker_config` is a directory with credentials for the Deep Learning Containers' account.
    """
    from harness.bootstrap import find_torch_wheel

    engine.check(builds=True)
    wheel = find_torch_wheel() if what.stand_in else None
    wheels = wheel.parent if wheel else None
    _check_disk(what, DISK_DLC if not what.stand_in else DISK_STAND_IN if wheel else DISK_STAND_IN_CUDA, reporter)
    if what.stand_in:
        djl.ensure(CACHE, reporter.say)
        ensure_root(reporter)
    env = environment(what, wheels)
    if docker_config is not None:
        env["DOCKER_CONFIG"] = str(docker_config)
    hint = "" if what.stand_in else "docs/images.md says what access to the Deep Learning Containers takes"
    shell.show(command(what), cwd=PRODUCT, env=env, hint=hint)
    return {what.name(role): layers(what.name(role)) for role in ROLES}


def _check_disk(what: Build, need: int, reporter: Reporter) -> None:
    """Says what a first build takes, before it begins. An engine elsewhere (DOCKER_HOST) has a disk of its own."""
    if _was_built(what):
        need = DISK_AGAIN
    folder = Path(engine.run(["info", "--format", "{{.DockerRootDir}}"]).strip())
    if not folder.is_dir():
        reporter.say(f"the build takes up to {need / 1e9:.0f} GB of the engine's disk")
        return
    free = shutil.disk_usage(folder).free
    if free < need:
        text = f"{free / 1e9:.0f} GB of disk are free in {folder}, the build needs {need / 1e9:.0f} GB"
        raise MissingPrerequisite(text, hint="free some: docker system df; docker builder prune")
    reporter.say(f"the build takes up to {need / 1e9:.0f} GB of disk; {free / 1e9:.0f} GB are free in {folder}")


def _was_built(what: Build) -> bool:
    """Whether an earlier revision of both images is here, whose base a new one shares."""

    def same_base(name: str) -> bool:
        return name.startswith(f"{what.stack}-cpu-") if what.stand_in else is_for_aws(name, what.stack)

    words = ["image", "ls", "--format", "{{.Tag}}"]
    return all(any(map(same_base, engine.run([*words, f"{what.registry}/neuron-{r}"]).split())) for r in ROLES)


def ensure_root(reporter: Reporter) -> None:
    """The stand-ins' root image: pulled by the engine where DEBIAN_IMAGE names another, else made by debootstrap."""
    if os.environ.get("DEBIAN_IMAGE") or engine.run(["image", "ls", "-q", DEBIAN_IMAGE]).strip():
        return
    tarball = CACHE / "images" / "debian-bookworm.tar"
    if not tarball.is_file():
        if os.getuid() != 0 or shutil.which("debootstrap") is None:
            raise MissingPrerequisite(
                "the stand-ins' Debian root is not there",
                "it is made by debootstrap, as root",
                "with access to a registry call: DEBIAN_IMAGE=debian:bookworm-slim harness build --stand-in",
            )
        reporter.say("making the stand-ins' Debian root (a minute)")
        tarball.parent.mkdir(parents=True, exist_ok=True)
        shell.run([PRODUCT / "containers" / "base" / "debian.sh", tarball], timeout=600)
    engine.run(["import", "--change", 'CMD ["bash"]', tarball, DEBIAN_IMAGE], timeout=300)


def layers(image: str) -> list[Layer]:
    """What each instruction added, oldest first; those that added nothing are left out."""
    text = engine.run(["history", "--no-trunc", "--human=false", "--format", "{{json .}}", image])
    rows = [json.loads(line) for line in text.splitlines()]
    return [Layer(int(r["Size"]), r["CreatedBy"].split(" # buildkit")[0]) for r in reversed(rows) if int(r["Size"])]


def ours(found: list[Layer]) -> list[Layer]:
    """The layers on top of the base: those that put something below /opt/program, and what lies between."""
    first = next((i for i, layer in enumerate(found) if "/opt/program" in layer.made_by), len(found))
    return found[first:]
