"""Each version of optimum-neuron, transformers, boto3 and DJL lacks exactly what versions.toml declares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.conformance import operations, uses, versions
from tests.conformance.uses import TRAINER, Use
from tests.conformance.versions import Version

VERSIONS = {version.title: version for version in versions.declared()}


@pytest.fixture(scope="module", autouse=True)
def _fetched(request: pytest.FixtureRequest) -> None:
    if any(item.get_closest_marker("neuron") for item in request.session.items if item.module is request.module):
        versions.fetch_all()


@pytest.mark.neuron
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_version_lacks_what_is_declared_and_nothing_else(version: Version) -> None:
    assert versions.verdict(versions.lacks(version), version) == []


def test_a_pinned_version_lacks_nothing_and_everything_declared_has_its_reason() -> None:
    for version in VERSIONS.values():
        assert all(len(why) > 6 for why in version.missing.values()), version.title
        assert not (version.pinned and version.missing), version.title
    pinned = [title for title, version in VERSIONS.items() if version.pinned]
    assert [title.split()[0] for title in pinned] == [
        *("optimum-neuron", "transformers", "transformers", "boto3", "djl_python")
    ]
    for title in pinned:
        name, version = title.split()
        locks = "".join(path.read_text() for path in (uses.ROOT / "locks").glob("*.txt"))
        assert name == "djl_python" or f"{name}=={version} " in locks, title


@pytest.mark.neuron
@pytest.mark.parametrize("title", ["optimum-neuron 0.0.28", "optimum-neuron 0.4.5", "boto3 1.35.99"])
def test_a_declaration_that_is_not_so_is_seen(title: str) -> None:
    version = VERSIONS[title]
    found = versions.lacks(version)
    wrong = replace(version, missing={**version.missing, f"{TRAINER}.train does not exist": "made up"})
    assert versions.verdict(found, wrong) == [f"declared and not so: {TRAINER}.train does not exist"]
    for text in version.missing:
        less = {k: v for k, v in version.missing.items() if k != text}
        assert versions.verdict(found, replace(version, missing=less)) == [f"not declared: {text}"]


@pytest.mark.neuron
@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("optimum-neuron 0.0.28", "optimum.neuron.NeuronTrainer.evalute"),
        ("transformers 5.24.0", "transformers.PreTrainedModel.generates"),
        ("djl_python 0.25.0", "djl_python.Output.ad"),
    ],
)
def test_a_name_that_goes_is_seen(title: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = f"{VERSIONS[title].folders[0]}/new.py"
    monkeypatch.setattr(versions, "USES", [*versions.USES, Use(file, (name,), "name")])
    version = VERSIONS[title]
    assert versions.verdict(versions.lacks(version), version) == [f"not declared: {name} does not exist"]


@pytest.mark.neuron
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("sagemaker", "create_training_jobs", ()), "sagemaker has no operation create_training_jobs"),
        (("ecr", "batch_get_image", ("imageId",)), "ecr.batch_get_image takes no imageId"),
        (("sagemaker", "list_models", (), "Model"), "sagemaker.list_models answers no Model"),
        (("sagemakers", "list_models", ()), "boto3 has no service sagemakers"),
    ],
)
def test_a_call_of_aws_that_does_not_exist_is_seen(call: Any, said: str) -> None:
    models = operations.Models(versions.file_of("botocore==1.44.5"))
    assert models.misfits(operations.Call("harness/new.py", *call)) == [said]


@pytest.mark.neuron
def test_a_request_that_a_version_does_not_know_is_seen() -> None:
    models = operations.Models(versions.file_of("botocore==1.44.5"))
    operation, request = next(iter(versions.sent()))
    assert models.refused(operation, request) == []
    assert "Tag is not known" in models.refused(operation, {**request, "Tag": []})[0]


def test_every_call_of_aws_is_read() -> None:
    found = operations.calls()
    assert len(found) > 40
    names = {(call.service, call.operation) for call in found}
    assert {("sagemaker", "create_training_job"), ("sagemaker", "list_models"), ("ecr", "create_repository")} <= names
    assert ("sagemaker-runtime", "invoke_endpoint_with_response_stream") in names
    with pytest.raises(ValueError, match=r"harness/new\.py:1"):
        operations.calls({"harness/new.py": "def f(aws, x):\n  aws.call(x, y)".replace("\n  ", " ")})
