"""The HTTP front itself: who is answered, what is refused, and that a path stays inside."""

from __future__ import annotations

import json
from typing import Any

import pytest
import urllib3
from botocore.exceptions import ClientError

from harness.local.control import Server
from tests.emulator.requests import Requests

pytestmark = pytest.mark.emulator
SIGNED = "AWS4-HMAC-SHA256 Credential=A/20260101/us-west-2/{}/aws4_request, SignedHeaders=host, Signature=0"


def send(
    server: Server, method: str, path: str, service: str = "sagemaker", **given: Any
) -> urllib3.BaseHTTPResponse:
    headers = {"Authorization": SIGNED.format(service), **given.pop("headers", {})}
    return urllib3.request(method, server.url + path, headers=headers, retries=False, timeout=20, **given)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "169.254.169.254"])
def test_a_name_that_was_bound_to_us_is_not_answered(server: Server, host: str) -> None:
    for path in ("/", "/harness/health", "/endpoints/x/invocations"):
        assert send(server, "GET", path, headers={"Host": host}).status == 403


@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_web_page_is_not_answered(server: Server, header: dict[str, str]) -> None:
    target = {"X-Amz-Target": "SageMaker.ListEndpoints"}
    assert send(server, "POST", "/", headers={**header, **target}, body=b"{}").status == 403
    assert send(server, "GET", "/local", "s3", headers=header).status == 403


def test_it_listens_on_loopback_only(server: Server) -> None:
    import psutil

    found = [c.laddr for c in psutil.Process(server.pid).net_connections("tcp") if c.status == "LISTEN"]
    assert {address.ip for address in found} == {"127.0.0.1"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"TrainingJobName": 1}', b"[" * 100_000])
def test_what_is_no_request_is_a_clean_error(server: Server, body: bytes) -> None:
    answer = send(server, "POST", "/", headers={"X-Amz-Target": "SageMaker.CreateTrainingJob"}, body=body)
    assert (answer.status, answer.json()["__type"]) in ((400, "ValidationException"), (400, "SerializationException"))


def test_bodies_of_requests_are_bounded(server: Server) -> None:
    body = json.dumps({"TrainingJobName": "x" * (1 << 20)}).encode()
    assert send(server, "POST", "/", headers={"X-Amz-Target": "SageMaker.CreateTrainingJob"}, body=body).status == 413


def test_unknown_operations_are_told_from_refused_ones(server: Server) -> None:
    for operation, status in (("CreateTransformJob", 501), ("NoSuchOperation", 404)):
        answer = send(server, "POST", "/", headers={"X-Amz-Target": f"SageMaker.{operation}"}, body=b"{}")
        assert (answer.status, operation in answer.json()["message"]) == (status, True)


@pytest.mark.parametrize(
    "key", ["../../outside", "a/../../../outside", "..", "/etc/passwd", "a//b", "a\\..\\b", "x" * 300]
)
def test_no_key_leaves_the_store(aws: Requests, server: Server, key: str) -> None:
    def files() -> set[str]:
        return {p.name for p in server.state.parent.rglob("outside*")} | {p.name for p in server.state.iterdir()}

    before = files()
    aws.s3.put_object(Bucket="local", Key=key, Body=b"x")
    assert aws.s3.get_object(Bucket="local", Key=key)["Body"].read() == b"x"
    aws.s3.delete_object(Bucket="local", Key=key)
    assert files() == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"TrainingJobName": "a_b"}, "TrainingJobName is 'a_b'"),
        ({"HyperParameters": {"k": "x" * 2501}}, "at most 2500 fit"),
        ({"Environment": {"k": "x" * 513}}, "at most 512 fit"),
        (
            {"ResourceConfig": {"InstanceType": "ml.inf2.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1}},
            "InstanceType",
        ),
        ({"StoppingCondition": None}, "StoppingCondition is required"),
        ({"StoppingCondition": {"MaxWaitTimeInSeconds": 9}}, "only supported when EnableManagedSpotTraining"),
        ({"EnableManagedSpotTraining": True}, "Invalid MaxWaitTimeInSeconds"),
        ({"OutputDataConfig": {"S3OutputPath": "s3://none/x"}}, "bucket does not exist"),
        ({"CheckpointConfig": {"S3Uri": "s3://none/x"}}, "bucket does not exist"),
        ({"Tags": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]}, "Duplicate tag keys"),
        ({"Tags": [{"Key": "aws:a", "Value": "1"}]}, "aws: prefixed"),
    ],
)
def test_the_services_rules_for_jobs(aws: Requests, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ClientError) as error:
        aws.sm.create_training_job(**aws.job("ruled", **changes))
    assert error.value.response["Error"]["Code"] == "ValidationException"
    assert reason in error.value.response["Error"]["Message"]
    assert aws.sm.list_training_jobs(NameContains="ruled")["TrainingJobSummaries"] == []


def channels(*given: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://local/ruled/"}
    return {
        "InputDataConfig": [
            {"ChannelName": name, "DataSource": {"S3DataSource": {**source, **changes.pop("s3", {})}}, **changes}
            for name, changes in given
        ]
    }


@pytest.mark.parametrize(
    ("given", "code", "reason"),
    [
        ([("a", {}), ("a", {})], "ValidationException", "must be unique"),
        ([("a", {"s3": {"S3Uri": "s3://local/none/"}})], "ValidationException", "No S3 objects found"),
        ([("a", {"s3": {"S3Uri": "s3://none/none/"}})], "ValidationException", "No S3 objects found"),
        (
            [("a", {"s3": {"S3Uri": "s3://local/ruled/file"}, "InputMode": "FastFile"})],
            "ValidationException",
            "slash",
        ),
        ([("a", {"s3": {"S3DataDistributionType": "ShardedByS3Key"}})], "NotImplemented", "ShardedByS3Key"),
        ([("a", {"s3": {"S3DataType": "ManifestFile"}})], "NotImplemented", "ManifestFile"),
        ([("a", {"InputMode": "Pipe"})], "NotImplemented", "Pipe"),
    ],
)
def test_the_services_rules_for_channels(aws: Requests, given: Any, code: str, reason: str) -> None:
    aws.s3.put_object(Bucket="local", Key="ruled/file", Body=b"x")
    given = [(name, dict(changes)) for name, changes in given]
    with pytest.raises(ClientError) as error:
        aws.sm.create_training_job(**aws.job("ruled", **channels(*given)))
    assert error.value.response["Error"]["Code"] == code
    assert reason in error.value.response["Error"]["Message"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("DebugHookConfig", {"S3OutputPath": "s3://local/x"}),
        ("ExperimentConfig", {"ExperimentName": "x"}),
        (
            "ResourceConfig",
            {
                "InstanceType": "ml.trn1.2xlarge",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
                "KeepAlivePeriodInSeconds": 60,
            },
        ),
        ("CheckpointConfig", {"S3Uri": "s3://local/x", "LocalPath": "/opt/ml/other"}),
    ],
)
def test_members_without_effect_are_refused(aws: Requests, member: str, value: Any) -> None:
    with pytest.raises(ClientError, match="is not implemented by the local SageMaker"):
        aws.sm.create_training_job(**aws.job("refused", **{member: value}))
