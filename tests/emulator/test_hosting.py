"""Endpoints through the API: what boto3 sees, and what the container sees."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError, EventStreamError

from containers import contract
from tests.emulator.requests import IMAGE, ROLE, Requests

pytestmark = pytest.mark.emulator


@pytest.fixture(scope="module")
def endpoint(server: Any) -> Iterator[str]:
    from tests.emulator.conftest import client

    aws = Requests(server, client)
    assert aws.deploy("serving")["EndpointStatus"] == "InService"
    yield "serving"
    aws.delete("serving")
    aws.close()
    aws.close()


def invoke(aws: Requests, name: str, body: Any, **members: Any) -> Any:
    answer = aws.runtime.invoke_endpoint(EndpointName=name, Body=json.dumps(body), **members)
    return json.loads(answer["Body"].read())


def test_an_endpoint_is_described_as_aws_does(aws: Requests, endpoint: str) -> None:
    shown = aws.sm.describe_endpoint(EndpointName=endpoint)
    (variant,) = shown["ProductionVariants"]
    assert (variant["VariantName"], variant["CurrentInstanceCount"]) == ("AllTraffic", 1)
    assert variant["DeployedImages"][0]["SpecifiedImage"] == IMAGE
    assert endpoint in [e["EndpointName"] for e in aws.sm.list_endpoints(StatusEquals="InService")["Endpoints"]]
    assert aws.sm.describe_model(ModelName=endpoint)["PrimaryContainer"]["Mode"] == "SingleModel"
    config = aws.sm.describe_endpoint_config(EndpointConfigName=endpoint)
    assert config["ProductionVariants"][0]["InitialVariantWeight"] == 1.0


def test_the_container_sees_its_headers_and_a_read_only_model(aws: Requests, endpoint: str) -> None:
    answer = aws.runtime.invoke_endpoint(
        EndpointName=endpoint, Body=b'{"a": 1}', ContentType="application/json", Accept="text/x", CustomAttributes="c"
    )
    assert (answer["InvokedProductionVariant"], answer["CustomAttributes"]) == ("AllTraffic", "seen")
    assert answer["ContentType"] == "application/json"
    assert answer["NewSessionId"] == "s-1; Expires=2030-01-01T00:00:00Z"
    told = json.loads(answer["Body"].read())
    assert told["body"] == '{"a": 1}'
    assert told["model"] == {"files": ["config.json", "model.safetensors", "tokenizer.json"], "writable": []}
    headers = {k.lower(): v for k, v in told["headers"].items()}
    assert headers["content-type"] == "application/json" and headers["accept"] == "text/x"
    assert headers["x-amzn-sagemaker-custom-attributes"] == "c"
    assert not {k for k in headers if k.startswith(("x-amz-", "authorization"))}


@pytest.mark.parametrize(("status", "side"), [(400, "client"), (424, "client"), (500, "server")])
def test_what_the_container_refuses_is_a_model_error(aws: Requests, endpoint: str, status: int, side: str) -> None:
    with pytest.raises(ClientError, match=rf"Received {side} error \({status}\) from primary") as error:
        invoke(aws, endpoint, {"do": "status", "status": status, "text": "why"})
    shown = error.value.response
    assert (shown["Error"]["Code"], shown["ResponseMetadata"]["HTTPStatusCode"]) == ("ModelError", 424)
    assert (shown["OriginalStatusCode"], json.loads(shown["OriginalMessage"])) == (status, {"error": "why"})
    assert shown["LogStreamArn"].endswith(f"/aws/sagemaker/Endpoints/{endpoint}")


def test_a_stream_arrives_as_it_is_made(aws: Requests, endpoint: str) -> None:
    body = json.dumps({"do": "stream", "parts": 3, "pause": 0.3})
    began = time.monotonic()
    answer = aws.runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=body)
    assert answer["ContentType"] == "application/jsonlines"
    arrived = [(time.monotonic() - began, event["PayloadPart"]["Bytes"]) for event in answer["Body"]]
    assert b"".join(part for _, part in arrived) == b'{"part": 0}\n{"part": 1}\n{"part": 2}\n'
    assert arrived[-1][0] - arrived[0][0] > 0.5  # not all at the end


def test_a_broken_stream_ends_with_an_exception(aws: Requests, endpoint: str) -> None:
    body = json.dumps({"do": "tear", "parts": 2})
    parts = []
    stream = aws.runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=body)["Body"]
    with pytest.raises(EventStreamError, match="ModelStreamError"):
        for event in stream:
            parts.append(event["PayloadPart"]["Bytes"])
    stream.close()
    assert b"".join(parts) == b'{"part": 0}\n{"part": 1}\n'


def test_bodies_are_bounded(aws: Requests, endpoint: str) -> None:
    limit = contract.MAX_INVOCATION_BODY
    answer = aws.runtime.invoke_endpoint(EndpointName=endpoint, Body=b"x" * limit)
    assert len(json.loads(answer["Body"].read())["body"]) == limit
    with pytest.raises(ClientError, match="HTTP content length exceeded"):
        aws.runtime.invoke_endpoint(EndpointName=endpoint, Body=b"x" * (limit + 1))


def test_what_is_not_there_is_not_found(aws: Requests) -> None:
    with pytest.raises(ClientError, match="Endpoint none of account 000000000000 not found") as error:
        invoke(aws, "none", {})
    assert error.value.response["Error"]["Code"] == "ValidationError"
    for call in (aws.sm.describe_endpoint, aws.sm.delete_endpoint):
        with pytest.raises(ClientError, match="Could not find endpoint"):
            call(EndpointName="none")
    with pytest.raises(ClientError, match="Could not find endpoint configuration"):
        aws.sm.create_endpoint(EndpointName="none", EndpointConfigName="none")
    with pytest.raises(ClientError, match="Could not find model"):
        aws.sm.delete_model(ModelName="none")
    with pytest.raises(ClientError, match="async-invocations is not implemented"):
        aws.runtime.invoke_endpoint_async(EndpointName="none", InputLocation="s3://local/x")


def test_an_update_is_healthy_before_the_old_one_goes_and_failure_rolls_back(aws: Requests) -> None:
    aws.deploy("updated", FAKE_VERSION="1")
    aws.config("updated-2", FAKE_VERSION="2")
    aws.config("updated-3", FAKE_BREAKS="at start")
    aws.sm.update_endpoint(EndpointName="updated", EndpointConfigName="updated-2")
    versions = set()
    while aws.sm.describe_endpoint(EndpointName="updated")["EndpointStatus"] == "Updating":
        versions.add(invoke(aws, "updated", {})["version"])  # served all the time
    assert versions <= {"1", "2"}
    assert invoke(aws, "updated", {})["version"] == "2"
    aws.sm.update_endpoint(EndpointName="updated", EndpointConfigName="updated-3")
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        aws.sm.delete_endpoint(EndpointName="updated")
    shown = aws.settled("updated")
    assert (shown["EndpointStatus"], shown["EndpointConfigName"]) == ("InService", "updated-2")
    assert "did not pass the ping health check" in shown["FailureReason"]
    assert invoke(aws, "updated", {})["version"] == "2"
    aws.delete("updated")


def test_a_failed_endpoint_says_why_and_can_only_be_deleted(aws: Requests) -> None:
    shown = aws.deploy("broken", FAKE_BREAKS="at start")
    assert shown["EndpointStatus"] == "Failed"
    assert "RuntimeError: no such model" in shown["FailureReason"]
    lines = aws.logs.filter_log_events(logGroupName="/aws/sagemaker/Endpoints/broken")["events"]
    assert "RuntimeError: no such model" in [line["message"] for line in lines]
    with pytest.raises(ClientError, match="can only be deleted"):
        aws.sm.update_endpoint(EndpointName="broken", EndpointConfigName="broken")
    aws.delete("broken")


def test_model_data_that_cannot_be_had_fails_the_endpoint(aws: Requests) -> None:
    aws.s3.put_object(Bucket="local", Key="none/model.tar.gz", Body=b"there when the model is made")
    aws.config("no-data", data={"ModelDataUrl": "s3://local/none/model.tar.gz"})
    aws.s3.delete_object(Bucket="local", Key="none/model.tar.gz")
    aws.sm.create_endpoint(EndpointName="no-data", EndpointConfigName="no-data")
    assert "s3://local/none/model.tar.gz cannot be read" in aws.settled("no-data")["FailureReason"]
    aws.delete("no-data")


def test_compressed_model_data_is_unpacked(aws: Requests) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    aws.s3.put_object(Bucket="local", Key="packed/model.tar.gz", Body=packed.getvalue())
    aws.config("packed", data={"ModelDataUrl": "s3://local/packed/model.tar.gz"})
    aws.sm.create_endpoint(EndpointName="packed", EndpointConfigName="packed")
    assert aws.settled("packed")["EndpointStatus"] == "InService"
    assert invoke(aws, "packed", {})["model"]["writable"] == []
    aws.delete("packed")


def test_a_container_that_dies_is_started_again(aws: Requests) -> None:
    aws.deploy("dies")
    with pytest.raises(ClientError, match="ModelError"):
        invoke(aws, "dies", {"do": "die"})
    deadline = time.monotonic() + 30
    while True:
        try:
            assert invoke(aws, "dies", {})["body"]
            break
        except ClientError as error:
            assert error.response["Error"]["Code"] in ("ModelError", "ServiceUnavailable")
            assert time.monotonic() < deadline
            time.sleep(0.2)
    aws.delete("dies")


def test_deletion_leaves_no_process_and_frees_the_name(aws: Requests, server: Any) -> None:
    before = len(psutil.Process(server.pid).children(recursive=True))
    aws.deploy("gone")
    aws.delete("gone")
    assert len(psutil.Process(server.pid).children(recursive=True)) == before
    assert not list((server.state / "endpoints" / "us-west-2").glob("gone*"))
    for call, name in ((aws.sm.delete_endpoint_config, "EndpointConfigName"), (aws.sm.delete_model, "ModelName")):
        call(**{name: "gone"})
    assert aws.deploy("gone")["EndpointStatus"] == "InService"
    aws.delete("gone")


def test_invocations_are_counted(aws: Requests, endpoint: str) -> None:
    invoke(aws, endpoint, {})
    found = aws.client("cloudwatch").list_metrics(Namespace="AWS/SageMaker")["Metrics"]
    names = {m["MetricName"] for m in found if {"Name": "EndpointName", "Value": endpoint} in m["Dimensions"]}
    assert names == {"Invocations", "ModelLatency", "Invocation4XXErrors", "Invocation5XXErrors"}


def test_what_is_not_emulated_is_refused_by_name(aws: Requests) -> None:
    aws.config("refused")
    variant = aws.sm.describe_endpoint_config(EndpointConfigName="refused")["ProductionVariants"][0]
    config = {"EndpointConfigName": "refused-2", "ProductionVariants": [variant]}
    output = {"OutputConfig": {"S3OutputPath": "s3://local/x"}}
    refused = [
        ({**config, "AsyncInferenceConfig": output}, "AsyncInferenceConfig"),
        ({**config, "ProductionVariants": [variant, {**variant, "VariantName": "b"}]}, "several variants"),
        (
            {
                **config,
                "ProductionVariants": [
                    {**variant, "ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}
                ],
            },
            "ServerlessConfig",
        ),
    ]
    for request, what in refused:
        with pytest.raises(ClientError, match=f"{what}.* is not implemented by the local SageMaker") as error:
            aws.sm.create_endpoint_config(**request)
        assert error.value.response["Error"]["Code"] == "NotImplemented"
    with pytest.raises(ClientError, match="CreateDomain is not implemented"):
        aws.sm.create_domain(DomainName="d", AuthMode="IAM", DefaultUserSettings={"ExecutionRole": ROLE})
    with pytest.raises(ClientError, match="service dynamodb is not part of"):
        aws.client("dynamodb").list_tables()


def test_tags_are_found_by_service_and_by_tagging(aws: Requests) -> None:
    aws.config("tagged")
    arn = aws.sm.describe_model(ModelName="tagged")["ModelArn"]
    aws.sm.add_tags(ResourceArn=arn, Tags=[{"Key": "run", "Value": "t"}, {"Key": "b", "Value": ""}])
    aws.sm.delete_tags(ResourceArn=arn, TagKeys=["b"])
    assert aws.sm.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "run", "Value": "t"}]
    tagging = aws.client("resourcegroupstaggingapi")
    found = tagging.get_resources(TagFilters=[{"Key": "run", "Values": ["t"]}])["ResourceTagMappingList"]
    assert found == [{"ResourceARN": arn, "Tags": [{"Key": "run", "Value": "t"}]}]
    assert tagging.get_resources(ResourceTypeFilters=["sagemaker:endpoint"])["ResourceTagMappingList"] == []
    with pytest.raises(ClientError, match="does not exist"):
        aws.sm.list_tags(ResourceArn=arn + "-none")
