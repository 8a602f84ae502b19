"""serve/ under the packages of its image: torch 2.1.2, transformers 4.45.2, pydantic 2.6.1, with the tests it has.

.venv-serve has the image's packages but for torch, and .venv-neuron has its torch: a directory of links puts the two
together. Python is 3.11, where the image has 3.10: PyPI has no interpreters; the syntax is vermin's to check.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tnx.test_engine_neuron import ROOT

pytestmark = [pytest.mark.neuron, pytest.mark.timeout(900)]
# What .venv-serve has of the image's, over .venv-neuron's; and pytest, which neither has.
FROM_SERVE = ("transformers", "tokenizers", "pydantic", "pydantic_core", "annotated_types", "huggingface_hub")
FROM_HARNESS: tuple[str, ...] = ("pytest", "_pytest", "pygments", "pluggy", "iniconfig", "pytest_timeout.py", "py.py")
FROM_HARNESS += ("hypothesis", "_hypothesis_pytestplugin.py", "_hypothesis_globals.py", "_hypothesis_ftz_detector.py")
FROM_HARNESS += ("sortedcontainers",)
IMAGE = {"torch": "2.1.2+cu121", "transformers": "4.45.2", "pydantic": "2.6.1"}
# The fast tier's own of what runs in the two images.
MODULES = ("test_generator", "test_scheduler", "test_sampling", "test_signature", "test_contract")
MODULES += ("test_compatibility", "test_artifact", "test_compilers")


def site(environment: str) -> Path:
    return ROOT / environment / "lib" / "python3.11" / "site-packages"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    for environment, names in ((".venv-serve", FROM_SERVE), (".venv", FROM_HARNESS)):
        for name in names:
            facts = site(environment).glob(f"{name.removesuffix('.py')}-*.dist-info")
            for path in [site(environment) / name, *facts]:
                if path.exists():
                    (folder / path.name).symlink_to(path)
    return folder


def run(overlay: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{overlay}:{ROOT}", "HF_HUB_OFFLINE": "1", "USE_TORCH_XLA": "0"}
    env["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        [ROOT / ".venv-neuron" / "bin" / "python", *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_versions_are_the_images(overlay: Path) -> None:
    ask = "import json, torch, transformers as t, pydantic as p\n"
    ask += "print(json.dumps([m.__version__ for m in (torch, t, p)]))"
    done = run(overlay, "-c", ask)
    assert json.loads(done.stdout.splitlines()[-1]) == list(IMAGE.values()), done.stdout


def test_engine_neuron_answers_as_under_the_newest_torch(overlay: Path, tmp_path: Path) -> None:
    """Every scenario of the engine on the double: the answers of engine cpu, alone, together and joined mid-way."""
    done = run(overlay, "-m", "tests.tnx.scenarios", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:]
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    company = found["company"]
    assert company["alone"] == company["cpu"]
    for answers in (*company["together"].values(), company["joined"]):
        assert [a for _, a in answers] == [company["cpu"][n] for n, _ in answers]
    assert found["artifacts"]["prepared"][0] == 0


def test_what_runs_in_the_images_passes_its_tests_there(overlay: Path) -> None:
    files = [f"tests/{name}.py" for name in MODULES]
    done = run(overlay, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *files)
    assert done.returncode == 0, done.stdout[-3000:]
