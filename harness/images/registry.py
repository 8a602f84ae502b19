"""ECR: fresh credentials, repositories that are as they should be, a push that is verified by digest and recorded.

Credentials live in a docker configuration of their own for as long as they are used: no login is left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import files, shell
from harness.aws.errors import is_missing
from harness.aws.session import Aws
from harness.errors import HarnessError, InvalidInput, MissingPrerequisite, Problem
from harness.images import engine
from harness.images.build import ROLES, Build
from harness.paths import runs_dir
from harness.reporter import Reporter
from harness.spec import profile as profiles

DLC_ACCOUNT = "763104351884"
# Tagged images are what jobs refer to by digest: only what nothing can refer to by name goes, after two weeks.
LIFECYCLE = {
    "rules": [
        {
            "rulePriority": 1,
            "description": "neuron-harness: untagged images after 14 days",
            "selection": {
                "tagStatus": "untagged",
                "countType": "sinceImagePushed",
                "countUnit": "days",
                "countNumber": 14,
            },
            "action": {"type": "expire"},
        }
    ]
}
# A single image; an index is refused by SageMaker.
MANIFESTS = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")


@dataclass(frozen=True)
class Pushed:
    """An image in a registry, as its record says."""

    stack: str
    role: str
    region: str
    name: str
    digest: str
    time: str

    @property
    def uri(self) -> str:
        """What a request names: repository and digest."""
        return f"{self.name.rpartition(':')[0]}@{self.digest}"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def account() -> Aws:
    """Calls as the profile says; where there is none, by the standard chain, whose account is then the one."""
    if profiles.is_there():
        return Aws(profiles.load())
    return Aws(profiles.Profile(account="", region=profiles.LOCAL.region, role_arn="", bucket=""))


def regions() -> list[str]:
    """Where the profile's jobs and endpoints run; the lab's region where there is no profile."""
    profile = account().profile
    return list(dict.fromkeys([profile.region, profile.serving.region]))


@contextmanager
def credentials(aws: Aws, region: str, registry_id: str = "") -> Iterator[tuple[str, Path]]:
    """(registry host, docker configuration directory with a fresh token for it); the directory is deleted after."""
    more = {"registryIds": [registry_id]} if registry_id else {}
    data = aws.call("ecr", "get_authorization_token", region, **more)["authorizationData"][0]
    host = data["proxyEndpoint"].partition("://")[2]
    users = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    with tempfile.TemporaryDirectory(prefix="nh-docker-") as folder:  # mode 700
        config: dict[str, Any] = {}
        if (users / "config.json").is_file():
            config = json.loads((users / "config.json").read_text(encoding="utf-8"))
        # A store or a helper would be asked instead of what is written here.
        config.pop("credsStore", None)
        config.get("credHelpers", {}).pop(host, None)
        config.setdefault("auths", {})[host] = {"auth": data["authorizationToken"]}
        target = Path(folder) / "config.json"
        target.touch(mode=0o600)
        target.write_text(json.dumps(config), encoding="utf-8")
        for name in ("cli-plugins", "contexts", "buildx"):
            if (users / name).is_dir():
                (Path(folder) / name).symlink_to(users / name)
        yield host, Path(folder)


@contextmanager
def dlc_credentials(region: str) -> Iterator[Path]:
    """A docker configuration that may pull the Deep Learning Containers."""
    # The variable is docker-bake.hcl's, too: some regions have another account.
    with credentials(account(), region, os.environ.get("DLC_ACCOUNT") or DLC_ACCOUNT) as (_, folder):
        yield folder


def ensure_repository(aws: Aws, region: str, name: str, say: Any) -> None:
    """The repository, made with scanning, immutable tags and a lifecycle where it is not there."""
    try:
        found = aws.call("ecr", "describe_repositories", region, repositoryNames=[name])["repositories"][0]
    except HarnessError as error:
        if not is_missing(error):
            raise
        say(f"creating repository {name}: scan on push, immutable tags, untagged images expire after 14 days")
        aws.call(
            "ecr",
            "create_repository",
            region,
            repositoryName=name,
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
            tags=[{"Key": "neuron-harness", "Value": "images"}],
        )
        policy = json.dumps(LIFECYCLE)
        aws.call("ecr", "put_lifecycle_policy", region, repositoryName=name, lifecyclePolicyText=policy)
        return
    if found.get("imageTagMutability") != "IMMUTABLE":
        say(f"repository {name} has mutable tags: what a tag names may change; requests go by digest")


def in_registry(aws: Aws, region: str, repository: str, tag: str) -> tuple[str, str]:
    """(manifest's digest, image configuration's digest) of a tag; two empty strings where it is not there."""
    answer = aws.call(
        "ecr",
        "batch_get_image",
        region,
        repositoryName=repository,
        imageIds=[{"imageTag": tag}],
        acceptedMediaTypes=list(MANIFESTS),
    )
    if not answer.get("images"):
        return "", ""
    image = answer["images"][0]
    manifest = json.loads(image["imageManifest"])
    if "config" not in manifest:
        raise InvalidInput(
            f"{repository}:{tag} is an image index in the registry", "SageMaker refuses one", "push under another tag"
        )
    return image["imageId"]["imageDigest"], manifest["config"]["digest"]


@dataclass(frozen=True)
class Remote:
    """An image of this machine and where it goes: names with tag, and the image's id, which its manifest names."""

    role: str
    local: str
    id: str
    repository: str
    name: str

    @property
    def tag(self) -> str:
        return self.name.rpartition(":")[2]


def push(build: Build, region: str, reporter: Reporter) -> list[Pushed]:
    """Push both images to `region` at once and record them. Repeated after an interruption it goes on."""
    ids = {role: _image_id(build.name(role)) for role in ROLES}
    aws = account()
    for role in ROLES:
        ensure_repository(aws, region, f"neuron-{role}", reporter.say)
    with credentials(aws, region) as (host, folder):
        images = []
        for role, image_id in ids.items():
            local, repository = build.name(role), f"neuron-{role}"
            name = f"{host}/{repository}:{local.rpartition(':')[2]}"
            images.append(Remote(role, local, image_id, repository, name))
        missing = [image for image in images if not _is_there(aws, region, image, reporter)]
        _send(missing, folder, reporter)
        digests = {image: in_registry(aws, region, image.repository, image.tag) for image in images}
    if problems := [
        Problem(
            f"{image.name} does not hold what was pushed", f"configuration {config or 'missing'}, here {image.id}"
        )
        for image, (_, config) in digests.items()
        if config != image.id
    ]:
        raise MissingPrerequisite.of(problems)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = [Pushed(build.stack, i.role, region, i.name, digest, now) for i, (digest, _) in digests.items()]
    for one in made:
        record(one)
    return made


def _is_there(aws: Aws, region: str, image: Remote, reporter: Reporter) -> bool:
    """Whether the tag is in the registry. Raises InvalidInput where it is there and another image."""
    digest, config = in_registry(aws, region, image.repository, image.tag)
    if digest and config != image.id:
        raise InvalidInput(
            f"{image.name} is there already and is another image",
            "tags are immutable; the same sources were built twice, with different bases or on different days",
            f"use the one that is there ({digest}), or commit a change and build again",
        )
    if digest:
        reporter.say(f"{image.name} is there already")
    return bool(digest)


def _send(images: list[Remote], folder: Path, reporter: Reporter) -> None:
    """docker push, one for each at the same time: packing a layer takes one core."""
    for image in images:
        _say_size(image.local, image.role, reporter)
        engine.run(["tag", image.local, image.name])
    try:
        shell.show_all(
            [["docker", "--config", folder, "push", image.name] for image in images],
            hint="call again to go on: layers that have arrived are not sent again",
        )
    finally:
        for image in images:
            if image.name != image.local:
                engine.run(["image", "rm", "--no-prune", image.name])


def _image_id(name: str) -> str:
    listed = engine.run(["image", "ls", "--no-trunc", "--quiet", name]).split()
    if not listed:
        more = " --stand-in" if "-cpu-" in name else ""
        raise MissingPrerequisite(f"no image {name}", "this revision is not built here", f"run: harness build{more}")
    return listed[0]


def _say_size(image: str, role: str, reporter: Reporter) -> None:
    size = int(engine.run(["image", "inspect", "--format", "{{.Size}}", image]))
    # Packed layers are 30 to 60 % of this; how much of it is in the registry already, only the push finds out.
    reporter.say(f"pushing the {role} image: {size / 1e9:.1f} GB unpacked; a first push sends about half of it")


def record_file() -> Path:
    return runs_dir() / "images.json"


def pushed() -> list[Pushed]:
    """Every push from here, newest last."""
    try:
        return [Pushed(**row) for row in json.loads(record_file().read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []


def record(made: Pushed) -> None:
    rows = [p for p in pushed() if (p.name, p.region) != (made.name, made.region)]
    files.write_json(record_file(), [p.to_json() for p in [*rows, made]])


def local_images() -> list[dict[str, str]]:
    """Our images in the local engine; empty where there is none."""
    if shutil.which("docker") is None:
        return []
    words = ["--filter", "label=neuron-harness.stack", "--no-trunc", "--format", "{{json .}}"]
    text = engine.run(["image", "ls", *words])
    rows = [json.loads(line) for line in text.splitlines()]
    return [{"name": f"{r['Repository']}:{r['Tag']}", "id": r["ID"], "size": r["Size"]} for r in rows]
