"""Where SDKs and AWS's documents expect something of SageMaker that a simpler server would not do."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from harness.local import control
from tests.emulator.requests import ROLE, Requests

pytestmark = pytest.mark.emulator

S3 = {"S3DataDistributionType": "FullyReplicated", "S3DataType": "S3Prefix"}
LIST = """
train = B/'input/data/train'
print(sorted(p.relative_to(train).as_posix() for p in train.rglob('*') if p.is_file()))
"""


def channel(uri: str) -> list[dict[str, Any]]:
    return [{"ChannelName": "train", "DataSource": {"S3DataSource": {"S3Uri": uri, **S3}}}]


def code_of(error: Any) -> tuple[str, str]:
    return error.value.response["Error"]["Code"], error.value.response["Error"]["Message"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("EnableNetworkIsolation", False),
        ("ProfilerConfig", {"DisableProfiler": True}),
        ("ProfilerRuleConfigurations", []),
        ("Tags", []),
        ("ExperimentConfig", {}),
        ("RemoteDebugConfig", {"EnableRemoteDebug": False}),
        ("DebugHookConfig", {"S3OutputPath": "s3://local/debug", "CollectionConfigurations": []}),
    ],
)
def test_members_that_ask_for_nothing_are_accepted(aws: Requests, member: str, value: Any) -> None:
    name = f"nothing-{member.lower()}"
    assert aws.run(name, **{member: value})["TrainingJobStatus"] == "Completed"


def test_a_description_has_the_defaults_that_sdks_read(aws: Requests) -> None:
    aws.s3.put_object(Bucket="local", Key="described/a.txt", Body=b"a")
    shown = aws.run("described", InputDataConfig=channel("s3://local/described"))
    assert shown["OutputDataConfig"] == {
        "S3OutputPath": "s3://local/out",
        "KmsKeyId": "",
        "CompressionType": "GZIP",
    }
    assert (shown["InputDataConfig"][0]["CompressionType"], shown["InputDataConfig"][0]["RecordWrapperType"]) == (
        "None",
        "None",
    )


def test_a_prefix_is_the_beginning_of_a_key(aws: Requests) -> None:
    for key in ("p/train/a.csv", "p/train.csv", "p/train2/b.csv", "p/other.csv"):
        aws.s3.put_object(Bucket="local", Key=key, Body=b"x")
    aws.run("prefix", LIST, InputDataConfig=channel("s3://local/p/train"))
    aws.run("prefix-slash", LIST, InputDataConfig=channel("s3://local/p/train/"))
    (lines,) = aws.logged("prefix").values()
    assert "['.csv', 'a.csv'" not in lines[-1] and "a.csv" in lines[-1]
    assert "train.csv" in lines[-1] and "train2/b.csv" in lines[-1] and "other.csv" not in lines[-1]
    assert next(iter(aws.logged("prefix-slash").values()))[-1] == "['a.csv']"


def test_listing_jobs_cuts_pages_before_it_filters(aws: Requests) -> None:
    for name in ("paged-a", "paged-b", "paged-x"):
        aws.run(name)
    first = aws.sm.list_training_jobs(NameContains="paged-a", MaxResults=1)
    assert first["TrainingJobSummaries"] == [] and first["NextToken"]
    pages = aws.sm.get_paginator("list_training_jobs").paginate(
        NameContains="paged-a", PaginationConfig={"PageSize": 1}
    )
    assert [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]] == ["paged-a"]


def test_model_data_is_looked_for_when_a_model_is_made(aws: Requests) -> None:
    with pytest.raises(ClientError) as error:
        aws.config("nowhere", data={"ModelDataUrl": "s3://local/none/model.tar.gz"})
    code, message = code_of(error)
    assert code == "ValidationException" and "Could not access model data at s3://local/none/" in message


@pytest.mark.parametrize(
    ("image", "environment", "said"),
    [
        ("763104351884.dkr.ecr.us-west-2.amazonaws.com/djl-inference:0.28.0", {}, "is not of this account"),
        ("", {"HF_MODEL_ID": "gpt2"}, "HF_MODEL_ID=gpt2 is an id of the model hub"),
        ("", {"HF_MODEL_ID": "s3://a/b"}, "HF_MODEL_ID=s3://a/b is a place in S3"),
        ("", {"OPTION_MODEL_ID": "org/model"}, "OPTION_MODEL_ID=org/model is an id of the model hub"),
    ],
)
def test_a_model_that_no_endpoint_could_serve(
    aws: Requests, image: str, environment: dict[str, str], said: str
) -> None:
    aws.model_files()
    with pytest.raises(ClientError, match=said):
        aws.sm.create_model(
            ModelName="not-served",
            ExecutionRoleArn=ROLE,
            PrimaryContainer={
                "Image": image or aws.images["serve"],
                "ModelDataUrl": "s3://local/model/config.json",
                "Environment": environment,
            },
        )


def test_buckets_are_of_the_region_of_the_request(aws: Requests) -> None:
    elsewhere = {"LocationConstraint": "eu-west-1"}
    there = aws.client("s3", region="eu-west-1")
    there.create_bucket(Bucket="elsewhere-data", CreateBucketConfiguration=elsewhere)
    aws.s3.put_object(Bucket="elsewhere-data", Key="d/a.txt", Body=b"a")
    with pytest.raises(ClientError, match="elsewhere-data is in region eu-west-1"):
        aws.sm.create_training_job(**aws.job("far-in", InputDataConfig=channel("s3://elsewhere-data/d")))
    with pytest.raises(ClientError, match="elsewhere-data is in region eu-west-1"):
        aws.sm.create_training_job(**aws.job("far-out", OutputDataConfig={"S3OutputPath": "s3://elsewhere-data/o"}))
    with pytest.raises(ClientError, match="elsewhere-data is in region eu-west-1"):
        aws.config("far-model", data={"ModelDataUrl": "s3://elsewhere-data/d/a.txt"})


def test_an_endpoint_that_is_being_created_is_not_deleted(aws: Requests) -> None:
    aws.config("early", START="5")
    aws.sm.create_endpoint(EndpointName="early", EndpointConfigName="early")
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        aws.sm.delete_endpoint(EndpointName="early")
    assert aws.settled("early")["EndpointStatus"] in ("InService", "Failed")
    aws.delete("early")


def test_custom_attributes_have_an_end(aws: Requests) -> None:
    aws.deploy("attributes")
    with pytest.raises(ClientError, match="CustomAttributes may have 1024 characters"):
        aws.runtime.invoke_endpoint(EndpointName="attributes", Body=b"{}", CustomAttributes="x" * 1025)
    aws.delete("attributes")


@pytest.fixture
def faults(aws: Requests) -> Any:
    yield lambda **fault: control.faults(aws.server, "POST", fault)
    control.faults(aws.server, "DELETE")


@pytest.mark.parametrize(
    ("kind", "code"),
    [("throttling", "SlowDown"), ("expired-token", "ExpiredToken"), ("access-denied", "AccessDenied")],
)
def test_faults_reach_s3(aws: Requests, faults: Any, kind: str, code: str) -> None:
    faults(kind=kind, operation="PutObject", name="local/faulty/*")
    with pytest.raises(ClientError) as error:
        aws.s3.put_object(Bucket="local", Key="faulty/a", Body=b"a")
    assert code_of(error)[0] == code
    aws.s3.put_object(Bucket="local", Key="faulty/a", Body=b"a")
    assert aws.s3.get_object(Bucket="local", Key="faulty/a")["Body"].read() == b"a"


def test_faults_reach_invoke_endpoint(aws: Requests, faults: Any) -> None:
    aws.deploy("refusing")
    faults(kind="throttling", operation="InvokeEndpoint", name="refusing")
    with pytest.raises(ClientError) as error:
        aws.runtime.invoke_endpoint(EndpointName="refusing", Body=b"{}")
    assert code_of(error)[0] == "ThrottlingException"
    assert aws.runtime.invoke_endpoint(EndpointName="refusing", Body=b"{}")["ResponseMetadata"]
    aws.delete("refusing")


def test_logs_are_filtered_by_the_beginning_of_their_streams_name(aws: Requests) -> None:
    for name in ("stream-one", "stream-two"):
        aws.run(name, f"print('from {name}')")

    def lines(prefix: str) -> list[str]:
        given = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamNamePrefix": prefix}
        return [event["message"] for event in aws.logs.filter_log_events(**given)["events"]]

    assert lines("stream-one/") == ["from stream-one"]
    assert sorted(lines("stream-")) == ["from stream-one", "from stream-two"]
    assert lines("stream-none/") == []
