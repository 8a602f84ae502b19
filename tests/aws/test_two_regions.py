"""Training in one region, the endpoint in another: artifact and image are where they are used; `down` sees both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.aws.session import Aws
from harness.errors import Interrupted, InvalidInput
from harness.images.registry import Pushed, record as record_push
from harness.local.control import Server
from harness.record import Record
from harness.sagemaker import account as setup, preflight, resources
from harness.sagemaker.client import RunClient
from harness.spec.plan import Deployment
from harness.spec.profile import LOCAL, Profile
from tests.aws.test_platform import GOOD, deployment, tags
from tests.emulator.conftest import client
from tests.emulator.requests import Requests

pytestmark = pytest.mark.emulator
HERE, THERE = "us-west-2", "us-east-2"
MODEL = "(B/'model'/'config.json').write_text('{}'); (B/'model'/'model.safetensors').write_bytes(os.urandom(99)); "
MODEL += "(B/'model'/'tokenizer.json').write_text('{}'); "


@pytest.fixture
def profile(server: Server) -> Profile:
    made = server.answering(replace(LOCAL, serve_region=THERE, serve_bucket="local-there"))
    setup.create(Aws(made), made, lambda _: None)
    return made


@pytest.fixture
def run(profile: Profile, tmp_path: Path, request: pytest.FixtureRequest) -> RunClient:
    name = f"regions-{len(request.node.name)}-20260101-000000-abcd"
    record = Record(name, tmp_path / name)
    record.path.mkdir()
    return RunClient(record, profile, lambda _: None)


def push(aws: Aws, region: str, role: str, stack: str = "sdk2.20") -> Pushed:
    """An image as ECR has it after `harness push --region`, and its line in the record."""
    repository, tag = f"neuron-{role}", f"{stack}-g{'1' * 12}"
    aws.call("ecr", "create_repository", region, repositoryName=repository)
    manifest = f'{{"schemaVersion": 2, "config": {{"digest": "sha256:{role}"}}, "layers": []}}'
    put = {"repositoryName": repository, "imageManifest": manifest, "imageTag": tag}
    put["imageManifestMediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
    digest = aws.call("ecr", "put_image", region, **put)["image"]["imageId"]["imageDigest"]
    name = f"{LOCAL.account}.dkr.ecr.{region}.amazonaws.com/{repository}:{tag}"
    made = Pushed(stack, role, region, name, digest, "2026-01-01T00:00:00+00:00")
    record_push(made)
    return made


def wanted(run: RunClient, requests: Requests) -> Deployment:
    made = deployment(run, requests)
    source = {"S3Uri": {"placeholder": "artifact_uri"}, "S3DataType": "S3Object", "CompressionType": "Gzip"}
    made.create_model["PrimaryContainer"]["ModelDataSource"] = {"S3DataSource": source}
    return made


def copies(run: RunClient) -> list[str]:
    found = run.aws.pages("s3", "list_objects_v2", "Contents", THERE, Bucket="local-there")
    return [item["Key"] for item in found]


@pytest.mark.left_behind("copy of the artifact", "success", "`harness down`")
def test_artifact_and_image_are_where_they_are_used(server: Server, run: RunClient, profile: Profile) -> None:
    requests = Requests(server, client)
    push(run.aws, HERE, "train")
    push(run.aws, HERE, "serve")
    with pytest.raises(InvalidInput) as error:
        preflight.images(run.aws, profile)
    assert [p.hint for p in error.value.problems] == [f"push it: harness push --region {THERE}"]
    served = push(run.aws, THERE, "serve")

    request = requests.job(run.record.id, MODEL + GOOD, Tags=tags(run))
    request["AlgorithmSpecification"]["TrainingImage"] = run.images()["train_image"]
    assert f".ecr.{HERE}." in run.images()["train_image"]
    artifact = run.jobs.train(request, lambda *_: None, lambda: None)
    assert copies(run) == []
    said: list[str] = []
    run.say = said.append
    endpoint = run.deploy(wanted(run, requests), lambda: None)
    assert (endpoint.region, endpoint.status) == (THERE, "InService")
    assert b'"body"' in run.invoke(endpoint, {"do": "echo"})
    key = artifact.removeprefix("s3://local/")
    assert copies(run) == [key]
    model = run.resources.describe("model", endpoint.name, THERE)
    assert model is not None
    assert model["PrimaryContainer"]["Image"] == served.uri
    assert model["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]["S3Uri"] == f"s3://local-there/{key}"
    assert resources.describe(run.aws, "endpoint", endpoint.name, HERE) is None, "each region has its own"
    assert [e.region for e in run.endpoints()] == [THERE]

    run.delete(endpoint)
    assert run.deploy(wanted(run, requests), lambda: None) == endpoint
    assert said == [f"copied the artifact to {THERE}"], "unchanged: not copied again"

    assert run.down() == [endpoint.name, f"s3://local-there/{key}"]
    for region in (HERE, THERE):
        for kind in resources.DELETION:
            assert resources.named(run.aws, kind, run.record.id, region) == []
    assert copies(run) == []
    assert run.transfer.head(artifact, HERE), "what the run was for stays"
    assert run.down() == []
    requests.close()


@pytest.mark.left_behind("copy of the artifact", ("Ctrl-C", "KILL"), "`harness down`")
def test_a_copy_whose_end_was_not_noted_is_found_by_down(
    server: Server, run: RunClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = Requests(server, client)
    run.jobs.train(requests.job(run.record.id, GOOD, Tags=tags(run)), lambda *_: None, lambda: None)
    copy = run.transfer.copy

    def cut_off(*words: str) -> bool:
        copy(*words)
        raise Interrupted(15)

    monkeypatch.setattr(run.transfer, "copy", cut_off)
    with pytest.raises(Interrupted):
        run.artifact_uri()
    assert len(copies(run)) == 1
    assert run.down()[0].startswith("s3://local-there/")
    assert copies(run) == []
    requests.close()
