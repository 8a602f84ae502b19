"""Images without an engine: names and tags, what the containers are started with, what a build is called with."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from containers import pins
from harness import executors, shell
from harness.errors import InvalidInput, MissingPrerequisite
from harness.executors import docker
from harness.executors.spec import ContainerSpec, Handle
from harness.images import build as images, engine, registry
from harness.images.build import Build, Layer
from harness.local.jobs.runner import JobEnvironment, TrainingRunner
from harness.local.store.objects import ObjectStore
from harness.spec import stacks

Usage = namedtuple("Usage", "total used free")


class Silent:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        pass

    def progress(self, label: str, done: int, total: int) -> None:
        pass


def spec(**more: object) -> ContainerSpec:
    given: dict[str, object] = {"role": "train", "command": "train", "network": False, **more}
    return ContainerSpec(name="n", base=Path("/b"), log=Path("/l"), image="i:t", **given)  # type: ignore[arg-type]


def pairs(words: list[str]) -> set[tuple[str, str]]:
    return set(pairwise(words))


def test_a_serving_container_has_a_read_only_model_and_listens_on_loopback_only() -> None:
    words = docker.arguments(spec(role="serve", command="serve", port=1234))
    assert ("--publish", "127.0.0.1:1234:8080") in pairs(words)
    assert ("--volume", "/b/model:/opt/ml/model:ro") in pairs(words)
    assert [w for w in words if w.startswith("/b")] == ["/b/model:/opt/ml/model:ro"]
    assert words[-2:] == ["i:t", "serve"]


def test_a_training_container_without_network_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    words = docker.arguments(spec(environment={"A": "b c"}))
    assert ("--network", "none") in pairs(words)
    assert ("--env", "A") in pairs(words)
    assert docker.environment(spec(environment={"A": "b c"}))["A"] == "b c"
    assert "secret" not in " ".join(words)
    assert "HF_TOKEN" in docker.arguments(spec(network=True))
    assert "secret" not in " ".join(docker.arguments(spec(network=True))), "ps shows the words of every process"
    assert docker.environment(spec(network=True))["HF_TOKEN"] == "secret"


def test_hosts_of_a_job_share_a_network_under_their_names() -> None:
    first, second = (docker.arguments(spec(job="j", host=f"algo-{i}")) for i in (1, 2))
    network = docker.network_name("j")
    for words, host in ((first, "algo-1"), (second, "algo-2")):
        assert {("--network", network), ("--network-alias", host), ("--hostname", host)} <= pairs(words)
    assert docker.network_name("j") != docker.network_name("k")


def test_what_a_kill_left_of_several_hosts_is_looked_for_by_every_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As tests/images does with containers: the server was killed before the job had a handle."""
    swept: list[str] = []
    monkeypatch.setattr(docker, "sweep", lambda name: swept.append(name) or 0)
    request = {"TrainingJobName": "x", "ResourceConfig": {"InstanceCount": 2}}
    environment = JobEnvironment(executor="docker", prefix="p-")
    folder, log = tmp_path / "job", tmp_path / "log"
    runner = TrainingRunner(request, ObjectStore(tmp_path / "s3"), folder, log, lambda _: None, environment)
    runner.sweep(executors.named("docker"))
    assert swept == ["p-x-algo-1", "p-x-algo-2", "p-x"]  # and last the network, which is named for the job


def test_a_container_has_a_memory_limit_and_no_swap() -> None:
    words = docker.arguments(spec())
    limit = words[words.index("--memory") + 1]
    assert int(limit) > 0
    assert words[words.index("--memory-swap") + 1] == limit


# A docker whose engine does not run, is not ours to ask, or cannot build.
DOWN = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
DENIED = "permission denied while trying to connect to the Docker daemon socket"
VERSION = 'case "$*" in *buildx*) {buildx};; *) {engine};; esac'
NO_BUILDX = "echo \"docker: 'buildx' is not a docker command.\" >&2; exit 1"
BUILDX = "echo github.com/docker/buildx {} 1234"


def fake_docker(folder: Path, engine: str = "echo 26.1.5", buildx: str = BUILDX.format("v0.13.1")) -> None:
    program = folder / "docker"
    program.write_text("#!/bin/sh\n" + VERSION.format(engine=engine, buildx=buildx) + "\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("fake", "said", "remedy"),
    [
        (None, "docker is not on this machine", "install Docker Engine with buildx"),
        ({"engine": f"echo '{DOWN}' >&2; exit 1"}, "no Docker engine answers", "start it"),
        ({"engine": f"echo '{DENIED}' >&2; exit 1"}, "no Docker engine answers", "join the group docker"),
    ],
)
@pytest.mark.parametrize("verb", ["build", "print", "push", "run", "start"])
def test_without_an_engine_every_verb_names_the_same_remedy(
    verb: str, fake: dict[str, str] | None, said: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if fake is not None:
        fake_docker(tmp_path, **fake)
    verbs: dict[str, Callable[[], object]] = {
        "build": lambda: images.build(Build(stand_in=True), Silent()),
        "print": lambda: images.printed(Build()),
        "push": lambda: registry.push(Build(), "us-west-2", Silent()),
        "run": lambda: docker.check_environment("train"),
        "start": lambda: docker.start(spec()),
    }
    with pytest.raises(MissingPrerequisite) as caught:
        verbs[verb]()
    (problem,) = caught.value.problems
    assert problem.what == said
    assert remedy in problem.hint
    assert "executor process" in problem.hint
    assert docker.sweep("n") == 0
    assert not docker.alive(Handle("n", 1, 0.0, "", "docker", "x"))


@pytest.mark.parametrize(
    ("buildx", "said"),
    [
        (NO_BUILDX, "docker has no buildx, which builds the images; 0.13 or later"),
        (BUILDX.format("v0.8.2+ds1"), "buildx is v0.8.2, 0.13 or later is needed"),
        (BUILDX.format("v0.13.1"), ""),
        (BUILDX.format("v1.0.0"), ""),
    ],
)
def test_buildx_is_needed_to_build_alone(
    buildx: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_docker(tmp_path, buildx=buildx)
    assert [p.what for p in engine.problems(builds=True)] == ([said] if said else [])
    engine.check()


@pytest.mark.parametrize(
    ("free", "stand_in", "tag", "need"),
    [
        (59, False, "", 60),
        (61, False, "", 60),
        (59, False, "sdk2.20-cpu-g1", 60),  # another base
        (59, False, "sdk2.20-g1", 2),
        (19, True, "", 20),
        (21, True, "sdk2.20-g1", 20),
        (19, True, "sdk2.20-cpu-g1", 2),
        (1, True, "sdk2.20-cpu-g1", 2),
    ],
)
def test_the_disk_is_looked_at_before_anything_is_built(
    free: int, stand_in: bool, tag: str, need: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DEBIAN_IMAGE", "x")
    monkeypatch.setattr("harness.bootstrap.find_torch_wheel", lambda: None)
    steps: list[str] = []
    monkeypatch.setattr("harness.assets.djl.ensure", lambda *_: steps.append("jars"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free * 10**9))
    monkeypatch.setattr(shell, "show", lambda *_, **__: steps.append("build"))
    monkeypatch.setattr(images, "layers", lambda _: [])
    fake_docker(tmp_path, engine=f"case $1 in image) echo {tag};; *) echo {tmp_path};; esac")
    said: list[str] = []
    reporter = Silent()
    monkeypatch.setattr(reporter, "say", said.append)
    if free < need:
        with pytest.raises(MissingPrerequisite, match=f"{free} GB of disk are free in .*, the build needs {need} GB"):
            images.build(Build(stand_in=stand_in), reporter)
        assert steps == []
    else:
        images.build(Build(stand_in=stand_in), reporter)
        assert f"the build takes up to {need} GB of disk; {free} GB are free in {tmp_path}" in said


def test_an_executor_that_is_not_there_is_refused_with_what_is() -> None:
    executors.check_name("")
    executors.check_name("docker")
    with pytest.raises(InvalidInput) as caught:
        executors.check_name("dokcer")
    assert 'did you mean "docker"?' in caught.value.problems[0].hint


def test_a_tag_names_stack_kind_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "revision", lambda: "g0123")
    assert Build("sdk2.20", registry="r").name("train") == "r/neuron-train:sdk2.20-g0123"
    assert Build("sdk2.20", stand_in=True, registry="r").name("serve") == "r/neuron-serve:sdk2.20-cpu-g0123"
    assert Build("sdk2.20", stand_in=True).targets == ["train-sdk2-20-cpu", "serve-sdk2-20-cpu"]


def test_the_content_hash_follows_names_bytes_and_modes(root: Path, tmp_path: Path) -> None:
    for name in images.SOURCES:
        path = root / name
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, tmp_path / name)
    before = images.content_hash(tmp_path)
    assert before == images.content_hash(tmp_path)
    (tmp_path / "train" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "train" / "__pycache__" / "x.pyc").write_text("x")
    assert images.content_hash(tmp_path) == before
    seen = {before}
    trainer = tmp_path / "train" / "run_clm.py"
    trainer.write_text(trainer.read_text() + "# a line\n")
    seen.add(images.content_hash(tmp_path))
    (tmp_path / "containers" / "base" / "debian.sh").chmod(0o644)
    seen.add(images.content_hash(tmp_path))
    (tmp_path / "serve" / "new.py").touch()
    seen.add(images.content_hash(tmp_path))
    assert len(seen) == 4


@pytest.mark.parametrize("role", images.ROLES)
def test_the_page_lists_the_files_that_are_copied(root: Path, role: str) -> None:
    """As tests/images does on the images themselves, where there is an engine."""
    text = (root / "docs" / "reference" / "images.md").read_text()
    block = text.split(f"## {role}\n")[1].split("/opt/program`:\n\n```text\n")[1].split("\n```")[0]
    ignored = (root / ".dockerignore").read_text().split()
    copied = [p for p in (root / role).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    names = [
        p.relative_to(root).as_posix()
        for p in [*(root / "containers").glob("*.py"), *(root / "containers").glob("*.json"), *copied]
    ]
    assert block.split("\n") == sorted(n for n in names if n not in ignored)


def test_what_is_ours_begins_with_our_first_copy() -> None:
    base, mine, pins_layer = (
        Layer(5, "RUN base"),
        Layer(2, "COPY containers/*.py /opt/program/x"),
        Layer(1, "RUN pins"),
    )
    assert images.ours([base, mine, pins_layer]) == [mine, pins_layer]
    assert images.ours([base]) == []


def test_pins_are_compared_with_what_is_installed() -> None:
    from importlib.metadata import version

    assert pins.differences([f"pytest=={version('pytest')}"]) == []
    assert pins.differences(["pytest==0.1", "no-such-thing==1"]) == [
        f"pytest is {version('pytest')}, the stack says 0.1",
        "no-such-thing 1 is not installed",
    ]


def test_stacks_name_images_that_the_bake_file_has(root: Path) -> None:
    """The whole comparison, by `bake --print`, is in tests/images; this one needs no Docker."""
    text = (root / "docker-bake.hcl").read_text(encoding="utf-8")
    for stack in stacks.all_stacks().values():
        for base in (stack.train_base, stack.serve_base):
            assert f'"{base}"' in text
        for name, wanted in {**stack.train_pins, **stack.serve_pins}.items():
            assert f"{name}=={wanted}" in text
