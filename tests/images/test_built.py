"""What is in the images, and what the bake file says against harness/stacks.json."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.images import build as images
from harness.images.build import Build
from harness.spec import stacks
from tests.images import checks
from tests.images.conftest import HARNESS, ROOT, copy_of_sources, docker
from tests.images.page import PAGE, page

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def stacks_of(targets: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """harness/stacks.json's content, from the targets that `bake --print` shows."""
    found: dict[str, dict[str, Any]] = {}
    for target in targets.values():
        labels = target.get("labels", {})
        if "neuron-harness.stack" not in labels or "neuron-harness.stand-in" in labels:
            continue
        role = labels["neuron-harness.role"]
        stack = found.setdefault(labels["neuron-harness.stack"], {})
        stack[f"{role}_base"] = labels["org.opencontainers.image.base.name"]
        stack[f"{role}_pins"] = dict(pin.split("==") for pin in labels["neuron-harness.pins"].split())
    return found


def test_stacks_json_is_what_bake_prints() -> None:
    printed = json.loads(images.printed(Build()))["target"]
    assert stacks_of(printed) == {
        name: {k: v for k, v in asdict(stack).items() if k != "name"} for name, stack in stacks.all_stacks().items()
    }


@pytest.mark.parametrize("role", images.ROLES)
def test_an_image_is_clean(built: dict[str, str], role: str) -> None:
    assert checks.outside(built[role], role) == []
    assert checks.inside(built[role], role) == []


def test_the_page_says_what_is_in_them(built: dict[str, str]) -> None:
    assert PAGE.read_text() == page(built), "write it anew: python -m tests.images.page"


def test_the_checks_see_what_is_wrong(built: dict[str, str], tmp_path: Path) -> None:
    """A spoilt image: each of the rules finds its own."""
    (tmp_path / "Dockerfile").write_text(
        f"FROM {built['train']}\nUSER nobody\nHEALTHCHECK CMD true\nENTRYPOINT []\nCMD bash\n"
        "USER root\nRUN touch /tmp/left.py /opt/program/notes.txt && mkdir -p /root/.aws /opt/program/serve"
        " && printf 'AKIA0123456789ABCDEF' >/root/key && python3 -m pip uninstall -qy --break-system-packages tqdm"
        " && head -c 60000000 /dev/zero >/opt/big\nENV HF_TOKEN=x\nUSER nobody\n"
    )
    docker("build", "--quiet", "--tag", "neuron-harness/spoilt", str(tmp_path))
    try:
        found = "\n".join(
            checks.outside("neuron-harness/spoilt", "train") + checks.inside("neuron-harness/spoilt", "train")
        )
    finally:
        docker("image", "rm", "--force", "neuron-harness/spoilt")
    for word in (
        "entrypoint",
        "command",
        "user nobody",
        "health check",
        "bytes on the base",
        "stray file /tmp/left.py",
    ):
        assert word in found, found
    for word in ("variable HF_TOKEN", "notes.txt", "/opt/program/serve does not belong", "tqdm"):
        assert word in found, found


def test_a_base_that_is_not_the_stacks_ends_the_build(built: dict[str, str]) -> None:
    words = [
        "--file",
        str(ROOT / "containers/train/Dockerfile"),
        "--build-arg",
        "BASE_IMAGE=neuron-harness/base-train:local",
    ]
    text = docker("build", *words, "--build-arg", "PINS=transformers==4.0.0", str(ROOT), check=False)
    assert "transformers is 4.48.1, the stack says 4.0.0" in text
    assert "this base image is not the one of docker-bake.hcl's row" in text


def test_a_dockerfile_without_a_base_does_not_build() -> None:
    text = docker("build", "--file", str(ROOT / "containers/train/Dockerfile"), str(ROOT), check=False)
    assert "BASE_IMAGE" in text or "base name" in text


def test_the_stock_launcher_loses_term_and_ours_does_not(built: dict[str, str]) -> None:
    """Why the images have an entrypoint of their own."""
    trap = (
        "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    )
    for image, command, code in (
        ("neuron-harness/base-train:local", ['python3 -c "' + trap + '"; true'], "137"),
        (built["train"], ["python3", "-c", trap], "7"),
    ):
        container = docker("run", "--detach", image, *command)
        try:
            while "up" not in docker("logs", container):
                assert docker("inspect", "--format", "{{.State.Running}}", container) == "true"
            docker("stop", "--time", "2", container)
            assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == code
        finally:
            docker("rm", "--force", container)


def test_a_stack_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [*HARNESS, "build", "--stack", "sdk9"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 3
    assert "no stack sdk9" in done.stderr


PIP = "python3 -m pip install"
TOLD = """
told() {
  echo "told certificates $(cat "$PIP_CERT") mirror $PIP_INDEX_URL proxies $HTTPS_PROXY $http_proxy $NO_PROXY"
  exit 9
}
"""


def test_certificates_mirror_and_proxies_are_what_pip_gets(built: dict[str, str], tmp_path: Path) -> None:
    """In a copy whose pip only says what it was given, and ends the build."""
    copy = copy_of_sources(tmp_path / "copy")
    script = copy / "containers" / "base" / "install.sh"
    first, _, rest = script.read_text().partition("\n")
    assert rest.count(PIP) == 3
    script.write_text(first + TOLD + rest.replace(PIP, "told"))
    (tmp_path / "ca.pem").write_text("the company's")
    company = {"PIP_INDEX_URL": "https://mirror.invalid/simple", "HTTPS_PROXY": "http://proxy.invalid:1"}
    company |= {"http_proxy": "http://proxy.invalid:2", "NO_PROXY": "localhost"}
    done = subprocess.run(
        [*HARNESS, "build", "--stand-in", "--ca", str(tmp_path / "ca.pem")],
        cwd=copy,
        env={**os.environ, **company},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 4
    told = "told certificates the company's mirror https://mirror.invalid/simple proxies http://proxy.invalid:1"
    assert f"{told} http://proxy.invalid:2 localhost" in done.stderr, done.stderr[-3000:]
