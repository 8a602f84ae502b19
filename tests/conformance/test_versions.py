"""The sources that conformance is checked against are the pinned ones, and what both devices share suits both."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.conformance.source import Tree
from tests.conformance.test_conformance import JAR, USES, misfit, tree
from tests.conformance.uses import ARGUMENTS, ROOT, TRAINER, Use

# environment, package, version: the images' own, of which harness/stacks.json has some
PINS = (
    (".venv-train", "transformers", "4.48.1"),
    (".venv-train", "optimum-neuron", "0.0.28"),
    (".venv-train", "accelerate", "0.29.2"),
    (".venv-train", "datasets", "2.18.0"),
    (".venv-serve", "transformers", "4.45.2"),
    (".venv", "botocore", "1.44.5"),
    (".venv", "boto3", "1.44.5"),
)
# These run on device neuron as well, where the trainer is NeuronTrainer.
SHARED = ("train/run_clm.py", "train/checkpoint.py", "train/metrics.py", "train/signature.py", "train/launch.py")
OTHER_DEVICE = {"transformers.TrainingArguments": ARGUMENTS, "transformers.Trainer": TRAINER}


def on_neuron(use: Use) -> Use | None:
    for theirs, ours in OTHER_DEVICE.items():
        if use.file in SHARED and use.name[0].startswith(f"{theirs}."):
            name = ours + use.name[0].removeprefix(theirs)
            return Use(use.file, (name,), use.kind, use.positional, use.keywords)
    return None


@pytest.mark.server
@pytest.mark.parametrize(("environment", "package", "pinned"), PINS)
def test_the_source_is_of_the_pinned_version(environment: str, package: str, pinned: str) -> None:
    packages = next((ROOT / environment).glob("lib/python*/site-packages"))
    found = [p.name for p in packages.glob(f"{package.replace('-', '_')}-*.dist-info")]
    assert found == [f"{package.replace('-', '_')}-{pinned}.dist-info"]
    lock = {".venv": "harness", ".venv-train": "train", ".venv-serve": "serve"}[environment]
    assert f"{package}=={pinned} " in (ROOT / "locks" / f"{lock}.txt").read_text()
    stack = json.loads((ROOT / "harness" / "stacks.json").read_text())["sdk2.20"]
    assert stack.get(f"{lock}_pins", {}).get(package, pinned) == pinned


@pytest.mark.server
def test_the_jar_is_the_locked_one() -> None:
    jars = json.loads((ROOT / "locks" / "djl-0.34.0.json").read_text())["jars"]
    (locked,) = [jar["sha256"] for jar in jars if jar["group"] == "ai.djl.python"]
    assert hashlib.sha256(JAR.read_bytes()).hexdigest() == locked
    assert Tree(JAR).resolve("djl_python.Output.add_stream_content") is not None


@pytest.mark.server
@pytest.mark.parametrize("use", [use for use in map(on_neuron, USES) if use], ids=str)
def test_what_both_devices_run_exists_in_optimum_neuron(use: Use) -> None:
    assert misfit(tree("train"), use) is None


@pytest.mark.server
def test_the_last_one_can_fail() -> None:
    uses = [use for use in map(on_neuron, USES) if use]
    assert len(uses) > 10
    assert misfit(tree("train"), Use("train/run_clm.py", (f"{TRAINER}.evalute",), "call")) is not None
