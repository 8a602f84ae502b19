"""The HTTP front itself: who is answered, what is refused, and that a path stays inside."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from typing import Any

import pytest
import urllib3
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from harness.local.control import KeyPair, Server
from tests.emulator.conftest import client
from tests.emulator.requests import Requests

pytestmark = pytest.mark.emulator


def send(
    server: Server, method: str, path: str, service: str = "sagemaker", **given: Any
) -> urllib3.BaseHTTPResponse:
    """A request that is signed with the server's key pair; `keys` are others, or None for no signature."""
    headers, body = dict(given.pop("headers", {})), given.pop("body", b"")
    keys = given.pop("keys", server.keys)
    host = headers.get("Host", server.url.removeprefix("http://"))
    request = AWSRequest(method, f"http://{host}{path}", {**headers, "Host": host}, body)
    if keys is not None:
        kind = S3SigV4Auth if service == "s3" else SigV4Auth
        credentials = Credentials(keys.access_key_id, keys.secret_access_key)
        kind(credentials, service, "us-west-2").add_auth(request)
    return urllib3.request(
        method, server.url + path, headers=dict(request.headers), body=body, retries=False, timeout=20, **given
    )


@pytest.mark.parametrize("secret", ["", "wrong"])
def test_nobody_is_answered_without_the_secret_of_the_state_directory(server: Server, secret: str) -> None:
    keys = KeyPair(server.keys.access_key_id, secret) if secret else None
    target = {"X-Amz-Target": "SageMaker.ListTrainingJobs"}
    assert send(server, "POST", "/", headers=target, body=b"{}", keys=keys).status == 403
    assert send(server, "GET", "/local", "s3", keys=keys).status == 403
    assert send(server, "POST", "/endpoints/x/invocations", body=b"{}", keys=keys).status == 403
    assert send(server, "GET", "/harness/health", keys=keys).status == 403
    assert send(server, "POST", "/harness/faults", body=b'{"kind": "spot"}', keys=keys).status == 403


def test_the_key_pair_is_random_and_its_owners_alone(server: Server) -> None:
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700
    path = server.state / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(server.keys.secret_access_key) >= 32
    assert server.environment()["AWS_SECRET_ACCESS_KEY"] == server.keys.secret_access_key


def test_motos_own_interface_is_not_there(server: Server, aws: Requests) -> None:
    aws.s3.put_object(Bucket="local", Key="kept", Body=b"x")
    for path in ("/moto-api/reset", "/moto-api/data.json", "/moto-api/"):
        assert send(server, "POST", path, "s3").status == 404
    assert aws.s3.get_object(Bucket="local", Key="kept")["Body"].read() == b"x"


def test_a_presigned_url_opens_its_object_only(server: Server, aws: Requests) -> None:
    for key in ("one", "two"):
        aws.s3.put_object(Bucket="local", Key=key, Body=key.encode())
    url = aws.s3.generate_presigned_url("get_object", {"Bucket": "local", "Key": "one"}, 60)
    assert urllib3.request("GET", url, retries=False).data == b"one"
    assert urllib3.request("GET", url.replace("/one?", "/two?"), retries=False).status == 403
    assert urllib3.request("DELETE", url, retries=False).status == 403


@pytest.mark.parametrize("service", ["s3", "sts", "iam", "logs", "sagemaker", "ecr"])
def test_a_refusal_is_in_the_protocol_of_its_service(server: Server, service: str) -> None:
    """botocore shows the code, and not that the answer could not be parsed."""
    calls = {"s3": "list_buckets", "sts": "get_caller_identity", "iam": "list_roles", "logs": "describe_log_groups"}
    calls |= {"sagemaker": "list_models", "ecr": "describe_repositories"}
    other = replace(server, keys=KeyPair(server.keys.access_key_id, "wrong"))
    with pytest.raises(ClientError) as caught:
        getattr(client(other, service), calls[service])()
    assert caught.value.response["Error"]["Code"] == "SignatureDoesNotMatch"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_keys_that_sts_has_given_out_are_answered(server: Server, aws: Requests) -> None:
    role = "arn:aws:iam::000000000000:role/local"
    given = client(server, "sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    keys = KeyPair(given["AccessKeyId"], given["SecretAccessKey"])
    target = {"X-Amz-Target": "SageMaker.ListTrainingJobs"}
    assert send(server, "POST", "/", headers=target, body=b"{}", keys=keys).status == 200


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
        (
            "DebugHookConfig",
            {"S3OutputPath": "s3://local/x", "CollectionConfigurations": [{"CollectionName": "losses"}]},
        ),
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
