"""`harness push` against a registry with ECR's manners: refusals, verification, what a changed line costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bootstrap import find_torch_wheel
from tests.images.conftest import HARNESS, ROOT, docker
from tests.images.ecr import Ecr

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def ecr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ecr]:
    with Ecr(tmp_path_factory.mktemp("ecr")) as running:
        yield running


def harness(ecr: Ecr, runs: Path, *words: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HARNESS, *words],
        cwd=root,
        env={
            **os.environ,
            "HARNESS_RUNS_DIR": str(runs),
            "AWS_ENDPOINT_URL_ECR": ecr.api,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.fixture(scope="module")
def pushed(built: dict[str, str], ecr: Ecr, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records' directory of a push of both images."""
    runs = tmp_path_factory.mktemp("runs")
    done = harness(ecr, runs, "push", "--stand-in")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.split()
    recorded = json.loads((runs / "images.json").read_text())
    assert lines == [f"{row['name'].rpartition(':')[0]}@{row['digest']}" for row in recorded]
    return runs


def test_a_repository_is_made_as_it_should_be(pushed: Path, ecr: Ecr) -> None:
    for name in ("neuron-train", "neuron-serve"):
        made = ecr.repositories[name]
        assert made["imageTagMutability"] == "IMMUTABLE"
        assert made["imageScanningConfiguration"] == {"scanOnPush": True}
        assert json.loads(ecr.lifecycle[name])["rules"][0]["selection"]["tagStatus"] == "untagged"


def test_what_was_pushed_is_a_single_image_and_is_pulled_by_its_digest(
    pushed: Path, built: dict[str, str], ecr: Ecr
) -> None:
    for row in json.loads((pushed / "images.json").read_text()):
        name, _, tag = row["name"].rpartition(":")
        digest, manifest = ecr.manifest(f"neuron-{row['role']}", tag)
        assert digest == row["digest"]
        assert "config" in json.loads(manifest)
        token = ecr.token()
        subprocess.run(
            ["docker", "login", "-u", "AWS", "--password-stdin", ecr.host], input=token, text=True, check=True
        )
        try:
            docker("pull", "--quiet", f"{name}@{digest}")
        finally:
            docker("logout", ecr.host)
        there = docker("image", "inspect", "--format", "{{.Id}}", f"{name}@{digest}")
        assert there == docker("image", "inspect", "--format", "{{.Id}}", built[row["role"]])
        docker("image", "rm", "--no-prune", f"{name}@{digest}")


def test_a_second_push_sends_nothing(pushed: Path, ecr: Ecr, tmp_path: Path) -> None:
    before = ecr.sent
    done = harness(ecr, tmp_path, "push", "--stand-in")
    assert done.returncode == 0, done.stderr
    assert "is there already" in done.stderr
    assert ecr.sent - before < 10_000
    assert json.loads((tmp_path / "images.json").read_text())


def test_no_credentials_are_left(pushed: Path, ecr: Ecr) -> None:
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    assert not config.exists() or ecr.host not in config.read_text()
    for path in pushed.rglob("*"):
        assert path.is_dir() or not any(token in path.read_text() for token in ecr.tokens)


def logged_in(ecr: Ecr, folder: Path, token: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    words = ["--config", str(folder)]
    subprocess.run(
        ["docker", *words, "login", "-u", "AWS", "--password-stdin", ecr.host],
        input=token,
        text=True,
        check=False,
        capture_output=True,
    )
    return words


def test_the_registry_has_ecrs_manners(pushed: Path, built: dict[str, str], ecr: Ecr, tmp_path: Path) -> None:
    """What the push is tested against refuses what ECR refuses; otherwise these tests would show nothing."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    docker("build", "--quiet", "--tag", f"{ecr.host}/nowhere:1", str(tmp_path))
    tag = built["train"].rpartition(":")[2]
    docker("tag", f"{ecr.host}/nowhere:1", f"{ecr.host}/neuron-train:{tag}")
    try:
        assert "no basic auth" in docker("push", f"{ecr.host}/nowhere:1", check=False)
        words = logged_in(ecr, tmp_path / "config", ecr.token())
        assert "does not exist in the registry" in docker(*words, "push", f"{ecr.host}/nowhere:1", check=False)
        text = docker(*words, "push", f"{ecr.host}/neuron-train:{tag}", check=False)
        assert "cannot be overwritten because the repository is immutable" in text
        token = ecr.token()
        words = logged_in(ecr, tmp_path / "late", token)
        ecr.tokens[token] = 0
        assert "token has expired" in docker(*words, "push", f"{ecr.host}/neuron-train:other", check=False) or (
            "token has expired" in docker(*words, "pull", f"{ecr.host}/neuron-train:{tag}", check=False)
        )
    finally:
        docker("image", "rm", "--force", f"{ecr.host}/nowhere:1", f"{ecr.host}/neuron-train:{tag}")


def test_an_image_index_is_refused(pushed: Path, ecr: Ecr) -> None:
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    headers = {"content-type": index["mediaType"], "authorization": _basic(ecr.token())}
    refused = ecr.refusal("PUT", "/v2/neuron-train/manifests/x", headers, json.dumps(index).encode())
    assert refused is not None
    assert refused[:2] == (400, "MANIFEST_INVALID")


def _basic(token: str) -> str:
    import base64

    return "Basic " + base64.b64encode(f"AWS:{token}".encode()).decode()


def test_another_image_under_the_same_tag_is_refused_with_the_way_out(
    pushed: Path, built: dict[str, str], ecr: Ecr, tmp_path: Path
) -> None:
    image_id = docker("image", "inspect", "--format", "{{.Id}}", built["serve"])
    (tmp_path / "Dockerfile").write_text(f"FROM {built['serve']}\nLABEL other=1\n")
    docker("build", "--quiet", "--tag", built["serve"], str(tmp_path))
    try:
        done = harness(ecr, tmp_path / "runs", "push", "--stand-in")
    finally:
        docker("tag", image_id, built["serve"])
    assert done.returncode == 3
    assert "is there already and is another image" in done.stderr


def test_a_changed_line_is_rebuilt_and_pushed_alone(
    pushed: Path, ecr: Ecr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the sources: the base's layers are neither built nor sent again."""
    if wheel := find_torch_wheel():  # looked for beside the sources, which the copy is not
        monkeypatch.setenv("WHEELS", str(wheel.parent))
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns(".git", ".venv*", ".runs", ".cache", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignore)
    (copy / ".cache").symlink_to(ROOT / ".cache")
    trainer = copy / "train" / "run_clm.py"
    trainer.write_text(trainer.read_text() + "# one line more\n")
    begin = time.monotonic()
    done = harness(ecr, tmp_path / "runs", "build", "--stand-in", root=copy)
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr[-3000:]
    names = [line for line in done.stdout.splitlines() if line.startswith("000000000000")]
    before = ecr.sent
    done = harness(ecr, tmp_path / "runs", "push", "--stand-in", root=copy)
    assert done.returncode == 0, done.stderr[-3000:]
    docker("image", "rm", *names)
    print(f"rebuild {seconds:.1f} s, {ecr.sent - before} bytes pushed")
    assert ecr.sent - before < 1_000_000
