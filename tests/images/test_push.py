"""`harness push` against a registry with ECR's manners: refusals, verification, what a changed line costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.spec import profile as profiles
from harness.spec.profile import Profile
from tests.images.conftest import HARNESS, ROOT, copy_of_sources, docker
from tests.images.ecr import Ecr

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
NOISE = 3_000_000  # bytes


@pytest.fixture(scope="module")
def ecr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ecr]:
    with Ecr(tmp_path_factory.mktemp("ecr")) as running:
        yield running


def harness(
    ecr: Ecr, runs: Path, *words: str, root: Path = ROOT, config: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HARNESS, *words],
        cwd=root,
        env={
            **os.environ,
            "HARNESS_RUNS_DIR": str(runs),
            "AWS_ENDPOINT_URL_ECR": ecr.api,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "XDG_CONFIG_HOME": str(config or runs),  # no profile but the test's
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


NAMES = "from harness.images.build import *; print(*(Build(stand_in=True).name(role) for role in ROLES))"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A checkout whose images, under the names that `harness push` looks for, are 3 MB of noise each."""
    copy = copy_of_sources(tmp_path / "small")
    names = subprocess.run([sys.executable, "-c", NAMES], cwd=copy, capture_output=True, text=True, check=True).stdout
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "Dockerfile").write_text("FROM scratch\nCOPY noise /\n")
    for name in names.split():
        (tmp_path / "noise" / "noise").write_bytes(os.urandom(NOISE))
        docker("build", "--quiet", "--tag", name, str(tmp_path / "noise"))
    yield copy
    docker("image", "rm", "--force", *names.split())


def rows(runs: Path) -> list[dict[str, str]]:
    """What the pushes have recorded."""
    file = runs / "images.json"
    return json.loads(file.read_text()) if file.exists() else []


@pytest.fixture(scope="module")
def pushed(built: dict[str, str], ecr: Ecr, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records' directory of a push of both images."""
    runs = tmp_path_factory.mktemp("runs")
    done = harness(ecr, runs, "push", "--stand-in")
    assert done.returncode == 0, done.stderr[-3000:]
    size = int(docker("image", "inspect", "--format", "{{.Size}}", built["train"])) / 1e9
    assert f"pushing the train image: {size:.1f} GB unpacked; a first push sends about half of it" in done.stderr
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


def test_a_push_that_breaks_off_goes_on(ecr: Ecr, small: Path, tmp_path: Path) -> None:
    ecr.refuses_manifests = True
    try:
        done = harness(ecr, tmp_path / "runs", "push", "--stand-in", root=small)
    finally:
        ecr.refuses_manifests = False
    assert done.returncode == 4
    assert "call again to go on: layers that have arrived are not sent again" in done.stderr
    assert rows(tmp_path / "runs") == []
    before = ecr.sent
    done = harness(ecr, tmp_path / "runs", "push", "--stand-in", root=small)
    assert done.returncode == 0, done.stderr
    assert "Layer already exists" in done.stderr
    assert ecr.sent - before < 100_000
    assert [row["role"] for row in rows(tmp_path / "runs")] == ["train", "serve"]


def test_a_registry_that_holds_another_image_is_not_recorded(ecr: Ecr, small: Path, tmp_path: Path) -> None:
    ecr.lies = True
    try:
        done = harness(ecr, tmp_path / "runs", "push", "--stand-in", root=small)
    finally:
        ecr.lies = False
    assert done.returncode == 4
    assert "does not hold what was pushed" in done.stderr
    assert done.stdout == ""
    assert rows(tmp_path / "runs") == []


def test_a_second_region_gets_the_same_images(ecr: Ecr, small: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    words = ["push", "--stand-in", "--region", "us-west-2", "--region", "eu-west-1"]
    with Ecr(tmp_path / "far") as far:
        ecr.regions["eu-west-1"] = far
        try:
            done = harness(ecr, tmp_path / "runs", *words, root=small)
        finally:
            ecr.regions.clear()
        assert done.returncode == 0, done.stderr
        found = rows(tmp_path / "runs")
        assert [(row["region"], row["role"]) for row in found] == [
            (region, role) for region in ("us-west-2", "eu-west-1") for role in ("train", "serve")
        ]
        for row in found:
            where = {"us-west-2": ecr, "eu-west-1": far}[row["region"]]
            host, _, name = row["name"].partition("/")
            assert host == where.host
            assert where.manifest(*name.split(":"))[0] == row["digest"]
    assert len({row["digest"] for row in found}) == 2


def test_the_profile_says_the_regions(ecr: Ecr, small: Path, tmp_path: Path) -> None:
    profile = Profile("123456789012", "eu-west-1", "arn:aws:iam::123456789012:role/x", "some-bucket")
    profiles.save(profile, tmp_path / "neuron-harness" / "profile.toml")
    done = harness(ecr, tmp_path / "runs", "push", "--stand-in", root=small, config=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {row["region"] for row in rows(tmp_path / "runs")} == {"eu-west-1"}


def test_another_image_under_the_same_tag_is_refused_with_the_way_out(ecr: Ecr, small: Path, tmp_path: Path) -> None:
    assert harness(ecr, tmp_path / "runs", "push", "--stand-in", root=small).returncode == 0
    (row, _) = rows(tmp_path / "runs")
    local = f"000000000000.dkr.ecr.us-west-2.amazonaws.com/{row['name'].partition('/')[2]}"
    (tmp_path / "Dockerfile").write_text(f"FROM {local}\nLABEL other=1\n")
    docker("build", "--quiet", "--tag", local, str(tmp_path))
    done = harness(ecr, tmp_path / "runs", "push", "--stand-in", root=small)
    assert done.returncode == 3
    assert "is there already and is another image" in done.stderr
    assert f"use the one that is there ({row['digest']})" in done.stderr


def logged_in(ecr: Ecr, folder: Path, token: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    words = ["--config", str(folder)]
    subprocess.run(
        ["docker", *words, "login", "-u", "AWS", "--password-stdin", ecr.host],
        input=token,
        text=True,
        check=True,
        capture_output=True,
    )
    return words


def refused(*words: str) -> str:
    """What a docker call that fails has written."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_registry_has_ecrs_manners(ecr: Ecr, small: Path, tmp_path: Path) -> None:
    """What the push is tested against refuses what ECR refuses; otherwise these tests would show nothing."""
    assert harness(ecr, tmp_path / "runs", "push", "--stand-in", root=small).returncode == 0
    taken = rows(tmp_path / "runs")[0]["name"]
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    names = [f"{ecr.host}/nowhere:1", f"{ecr.host}/neuron-train:other", taken]
    docker("build", "--quiet", *(word for name in names for word in ("--tag", name)), str(tmp_path))
    try:
        assert "no basic auth" in refused("push", names[0])
        token = ecr.token()
        words = logged_in(ecr, tmp_path / "config", token)
        assert "does not exist in the registry" in refused(*words, "push", names[0])
        assert "cannot be overwritten because the repository is immutable" in refused(*words, "push", taken)
        ecr.tokens[token] = 0
        expired = "denied: Your authorization token has expired. Reauthenticate and try again."
        assert expired in refused(*words, "push", names[1])
        assert expired in refused(*words, "pull", taken)
        ecr.tokens[token] = time.time() + 60  # nothing else was wrong with that push
        docker(*words, "push", names[1])
    finally:
        docker("image", "rm", "--force", *names)


def test_an_image_index_is_refused(pushed: Path, ecr: Ecr) -> None:
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    headers = {"content-type": index["mediaType"], "authorization": _basic(ecr.token())}
    refused = ecr.refusal("PUT", "/v2/neuron-train/manifests/x", headers, json.dumps(index).encode())
    assert refused is not None
    assert refused[:2] == (400, "MANIFEST_INVALID")


def _basic(token: str) -> str:
    import base64

    return "Basic " + base64.b64encode(f"AWS:{token}".encode()).decode()


def test_a_changed_line_is_rebuilt_and_pushed_alone(pushed: Path, ecr: Ecr, tmp_path: Path) -> None:
    """In a copy of the sources: the base's layers are neither built nor sent again."""
    copy = copy_of_sources(tmp_path / "copy")
    begin = time.monotonic()
    done = harness(ecr, tmp_path / "runs", "build", "--stand-in", root=copy)
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr[-3000:]
    # BuildKit may say it twice of one step, where two targets share it.
    assert set(re.findall(r"/install\.sh (train|serve)\n#\d+ CACHED", done.stderr)) == {"train", "serve"}
    names = [line for line in done.stdout.splitlines() if line.startswith("000000000000")]
    before = ecr.sent
    try:
        done = harness(ecr, tmp_path / "runs", "push", "--stand-in", root=copy)
    finally:
        docker("image", "rm", *names)
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"rebuild {seconds:.1f} s, {ecr.sent - before} bytes pushed")
    assert ecr.sent - before < 1_000_000
