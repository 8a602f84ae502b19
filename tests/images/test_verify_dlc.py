"""`make verify-dlc` as far as it goes without a Deep Learning Container: stand-ins under the containers' names.

Everything else is its own: the token, the bake file's targets for AWS, the whole list of pins, both kinds of checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.images import build as images
from harness.images.build import Build
from harness.spec import stacks
from tests.images import verify
from tests.images.conftest import docker
from tests.images.ecr import Ecr

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
# The only package of a container that the stand-in has not: said to be there.
NEURONX = """
FROM neuron-harness/base-serve:local
RUN d=$(python3 -c "import site; print(site.getsitepackages()[0])")/transformers_neuronx-{0}.dist-info \\
 && mkdir "$d" && printf 'Metadata-Version: 2.1\\nName: transformers-neuronx\\nVersion: {0}\\n' >"$d/METADATA"
"""


@pytest.fixture
def containers(built: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Role -> the base's name; an account that gives tokens; the disk is not that of a Deep Learning Container."""
    stack = stacks.get(stacks.DEFAULT)
    registry = "763104351884.dkr.ecr.us-west-2.amazonaws.com"
    names = {"train": f"{registry}/{stack.train_base}", "serve": f"{registry}/{stack.serve_base}"}
    (tmp_path / "Dockerfile").write_text(NEURONX.format(stack.serve_pins["transformers-neuronx"]))
    docker("tag", "neuron-harness/base-train:local", names["train"])
    docker("build", "--quiet", "--tag", names["serve"], str(tmp_path))
    monkeypatch.setattr(images, "DISK_DLC", 10**9)
    monkeypatch.setattr("sys.argv", ["verify"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with Ecr(tmp_path) as ecr:
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", ecr.api)
        yield names
    docker("image", "rm", "--force", *names.values(), *(Build().name(role) for role in images.ROLES), check=False)


def test_stand_ins_under_the_containers_names_are_clean(
    containers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main() == 0
    assert capsys.readouterr().out.splitlines() == [f"{Build().name(role)}: clean" for role in images.ROLES]


def test_a_container_that_is_not_the_stacks_ends_it(
    containers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    docker("tag", "neuron-harness/base-serve:local", containers["serve"])
    assert verify.main() == 4
    assert "transformers-neuronx 0.12.313 is not installed" in capsys.readouterr().err
