"""Training jobs through the API: what boto3 sees, and what the container sees."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError

from tests.emulator.requests import ROLE, Requests

pytestmark = pytest.mark.emulator


def statuses(shown: dict[str, Any]) -> list[str]:
    return [t["Status"] for t in shown["SecondaryStatusTransitions"]]


def channel(name: str, uri: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


WHOLE = """
print(json.dumps({p.name: json.loads(p.read_text()) for p in sorted((B/'input/config').iterdir())}))
print((B/'input/data/train/a.txt').read_text(), (B/'input/data/train/deep/b.txt').read_text())
print(os.environ['TRAINING_JOB_NAME'], os.environ['TRAINING_JOB_ARN'], os.getcwd() == os.environ['HOME'])
for n in range(3): print(f'step={n+1}/3 loss={1-n/4}', flush=True)
(B/'model'/'weights').write_text('w'); (B/'model'/'deep').mkdir(); (B/'model'/'deep'/'x').write_text('x')
(B/'output/data/metrics').write_text('m'); (B/'checkpoints/c-1').write_text('c')
"""


def test_a_whole_job(aws: Requests) -> None:
    aws.s3.put_object(Bucket="local", Key="whole/a.txt", Body=b"A")
    aws.s3.put_object(Bucket="local", Key="whole/deep/b.txt", Body=b"B")
    shown = aws.run(
        "whole",
        WHOLE,
        InputDataConfig=[channel("train", "s3://local/whole/")],
        HyperParameters={"lr": "0.1"},
        CheckpointConfig={"S3Uri": "s3://local/checkpoints/whole"},
        Tags=[{"Key": "run", "Value": "1"}],
    )
    assert (shown["TrainingJobStatus"], shown.get("FailureReason")) == ("Completed", None)
    assert statuses(shown) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    times = [t["StartTime"] for t in shown["SecondaryStatusTransitions"]]
    assert times == sorted(times)
    ends = [t["EndTime"] for t in shown["SecondaryStatusTransitions"]]
    assert ends[:-1] == times[1:] and shown["TrainingEndTime"] == ends[-1]
    assert shown["TrainingTimeInSeconds"] >= shown["BillableTimeInSeconds"] >= 1
    (metric,) = shown["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("loss", 0.5)

    ((stream, lines),) = aws.logged("whole").items()
    assert stream.startswith("whole/algo-1-")
    config = json.loads(lines[0])
    assert config["hyperparameters.json"] == {"lr": "0.1"}
    assert config["inputdataconfig.json"]["train"]["TrainingInputMode"] == "File"
    assert config["resourceconfig.json"]["current_instance_type"] == "ml.trn1.2xlarge"
    assert lines[1] == "A B"
    assert lines[2] == "whole arn:aws:sagemaker:us-west-2:000000000000:training-job/whole True"

    uri = shown["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri == "s3://local/out/whole/output/model.tar.gz"
    body = aws.s3.get_object(Bucket="local", Key=uri.removeprefix("s3://local/"))["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert sorted(tar.getnames()) == ["deep", "deep/x", "weights"]
    keys = {o["Key"] for o in aws.s3.list_objects_v2(Bucket="local", Prefix="out/whole/")["Contents"]}
    assert keys == {"out/whole/output/model.tar.gz", "out/whole/output/output.tar.gz"}
    assert aws.s3.get_object(Bucket="local", Key="checkpoints/whole/c-1")["Body"].read() == b"c"
    assert aws.sm.list_tags(ResourceArn=shown["TrainingJobArn"])["Tags"] == [{"Key": "run", "Value": "1"}]
    statistics = aws.client("cloudwatch").get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricName="loss",
        Dimensions=[{"Name": "TrainingJobName", "Value": "whole"}],
        StartTime=time.time() - 600,
        EndTime=time.time() + 600,
        Period=3600,
        Statistics=["Minimum", "Maximum", "SampleCount"],
    )["Datapoints"]
    assert sum(d["SampleCount"] for d in statistics) == 3


def test_plain_output(aws: Requests) -> None:
    code = "(B/'model/deep').mkdir(); (B/'model/deep/w').write_text('w'); (B/'output/data/m').write_text('m')"
    shown = aws.run("plain", code, OutputDataConfig={"S3OutputPath": "s3://local/out/", "CompressionType": "NONE"})
    assert shown["ModelArtifacts"]["S3ModelArtifacts"] == "s3://local/out/plain/output/model"
    keys = {o["Key"] for o in aws.s3.list_objects_v2(Bucket="local", Prefix="out/plain/")["Contents"]}
    assert keys == {"out/plain/output/model/deep/w", "out/plain/output/output/m"}


def test_a_job_that_fails_says_why(aws: Requests) -> None:
    shown = aws.run("fails", "(B/'output/failure').write_text('AlgorithmError: ' + 'x' * 2000); sys.exit(3)")
    assert shown["TrainingJobStatus"] == "Failed"
    assert shown["FailureReason"] == ("AlgorithmError: " + "x" * 2000)[:1024]
    assert statuses(shown)[-2:] == ["Training", "Failed"]
    shown = aws.run("fails-silently", "sys.exit(3)")
    assert shown["FailureReason"] == "AlgorithmError: exit code 3"
    shown = aws.run(
        "no-program",
        AlgorithmSpecification={**aws.job("x")["AlgorithmSpecification"], "ContainerEntrypoint": ["no-such"]},
    )
    assert "no-such: No such file" in shown["FailureReason"]
    with pytest.raises(WaiterError, match="Failed"):
        waiter = aws.sm.get_waiter("training_job_completed_or_stopped")
        waiter.wait(TrainingJobName="fails", WaiterConfig={"Delay": 1, "MaxAttempts": 5})


GRACEFUL = """
def term(*_):
    (B/'checkpoints/on-term').write_text('saved'); (B/'model/half').write_text('h'); sys.exit(143)
signal.signal(signal.SIGTERM, term)
print('ready', flush=True)
time.sleep(60)
"""


def test_stop_gives_the_container_its_time_and_keeps_what_it_saved(aws: Requests) -> None:
    aws.sm.create_training_job(**aws.job("stopped", GRACEFUL, CheckpointConfig={"S3Uri": "s3://local/ck/stopped"}))
    aws.until(
        "stopped", lambda d: "ready" in str(aws.logged("stopped")) if d["SecondaryStatus"] == "Training" else False
    )
    aws.sm.stop_training_job(TrainingJobName="stopped")
    shown = aws.ended("stopped")
    assert shown["TrainingJobStatus"] == "Stopped"
    assert statuses(shown)[-3:] == ["Stopping", "Uploading", "Stopped"]
    assert aws.s3.get_object(Bucket="local", Key="ck/stopped/on-term")["Body"].read() == b"saved"
    assert aws.s3.head_object(Bucket="local", Key="out/stopped/output/model.tar.gz")
    with pytest.raises(ClientError, match="is in status Stopped"):
        aws.sm.stop_training_job(TrainingJobName="stopped")


def test_max_runtime(aws: Requests) -> None:
    shown = aws.run("too-long", GRACEFUL, StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert (shown["TrainingJobStatus"], shown["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert aws.s3.head_object(Bucket="local", Key="out/too-long/output/model.tar.gz")


SEVERAL = """
import socket
r = json.loads((B/'input/config/resourceconfig.json').read_text())
me, hosts = r['current_host'], r['hosts']
if me == hosts[0]:
    s = socket.create_server((me, 23456)); c, _ = s.accept(); print('heard', c.recv(9).decode())
else:
    for _ in range(100):
        try: c = socket.create_connection((hosts[0], 23456)); break
        except OSError: time.sleep(0.1)
    c.sendall(b'hello')
(B/'model'/f'from-{hosts.index(me)}').write_text(me); (B/'model'/'same').write_text(me)
"""


def test_several_hosts_reach_each_other_and_leave_one_model(aws: Requests) -> None:
    resources = {"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
    shown = aws.run("several", SEVERAL, ResourceConfig=resources)
    assert (shown["TrainingJobStatus"], shown.get("FailureReason")) == ("Completed", None)
    streams = aws.logged("several")
    assert sorted(s.rsplit("-", 1)[0] for s in streams) == ["several/algo-1", "several/algo-2"]
    assert ["heard hello"] in streams.values()
    body = aws.s3.get_object(Bucket="local", Key="out/several/output/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert sorted(tar.getnames()) == ["from-0", "from-1", "same"]


def test_one_host_that_fails_ends_the_job(aws: Requests) -> None:
    code = "r = json.loads((B/'input/config/resourceconfig.json').read_text())\n"
    code += "if r['current_host'] == r['hosts'][1]: sys.exit(7)\ntime.sleep(60)"
    resources = {"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
    shown = aws.run("one-fails", code, ResourceConfig=resources)
    assert (shown["TrainingJobStatus"], shown["FailureReason"]) == ("Failed", "AlgorithmError: exit code 7")


def test_names_are_taken_once_and_free_after_deletion(aws: Requests) -> None:
    aws.run("twice")
    with pytest.raises(ClientError, match="already exists") as error:
        aws.sm.create_training_job(**aws.job("twice"))
    assert error.value.response["Error"]["Code"] == "ResourceInUse"
    aws.sm.delete_training_job(TrainingJobName="twice")
    with pytest.raises(ClientError, match="Requested resource not found") as error:
        aws.sm.describe_training_job(TrainingJobName="twice")
    assert error.value.response["Error"]["Code"] == "ValidationException"
    assert aws.run("twice")["TrainingJobStatus"] == "Completed"


def test_listing(aws: Requests) -> None:
    for n in range(5):
        aws.run(f"listed-{n}")
    pages = aws.sm.get_paginator("list_training_jobs").paginate(
        NameContains="LISTED", SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 2}
    )
    assert [s["TrainingJobName"] for page in pages for s in page["TrainingJobSummaries"]] == [
        f"listed-{n}" for n in range(5)
    ]
    newest = aws.sm.list_training_jobs(NameContains="listed", MaxResults=1)["TrainingJobSummaries"][0]
    assert newest["TrainingJobName"] == "listed-4"
    assert aws.sm.list_training_jobs(NameContains="listed", StatusEquals="Failed")["TrainingJobSummaries"] == []
    after = aws.sm.describe_training_job(TrainingJobName="listed-2")["CreationTime"]
    later = aws.sm.list_training_jobs(NameContains="listed", CreationTimeAfter=after)["TrainingJobSummaries"]
    assert {s["TrainingJobName"] for s in later} == {"listed-3", "listed-4"}
    elsewhere = aws.client("sagemaker", region="us-east-1")
    assert elsewhere.list_training_jobs()["TrainingJobSummaries"] == []


def test_the_role_is_the_only_credential(aws: Requests) -> None:
    with pytest.raises(ClientError, match="Could not assume role"):
        aws.sm.create_training_job(**aws.job("no-role", RoleArn=ROLE + "-none"))


def test_a_secret_reaches_the_container_and_nothing_else(aws: Requests) -> None:
    value = "hf_abcdefghijklmnopqrstuvwxyz"
    arn = aws.client("secretsmanager").create_secret(Name="hf", SecretString=value)["ARN"]
    show = "import os; print('length', len(os.environ['HF_TOKEN'])); raise SystemExit(os.environ['HF_TOKEN'])"
    algorithm = {
        "TrainingImage": aws.images["train"],
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python", "-m", "containers.entrypoint"],
        "ContainerArguments": ["python", "-c", show],
    }
    given = {"Environment": {"HF_TOKEN_SECRET_ARN": arn}, "AlgorithmSpecification": algorithm}
    shown = aws.run("secret", **given)
    assert shown["TrainingJobStatus"] == "Failed"
    assert aws.logged("secret").popitem()[1] == [f"length {len(value)}", "***"]
    state = Path(aws.server.state)
    # moto keeps the secret in memory; whatever the server has written knows the ARN alone.
    holders = [p for p in state.rglob("*") if p.is_file() and value.encode() in p.read_bytes()]
    assert holders == []
    assert shown["Environment"] == {"HF_TOKEN_SECRET_ARN": arn}
    missing = {**given, "Environment": {"HF_TOKEN_SECRET_ARN": arn.replace("secret:hf", "secret:none")}}
    reason = aws.run("no-secret", **missing)["FailureReason"]
    assert reason.startswith("ClientError: HF_TOKEN_SECRET_ARN (") and "ResourceNotFoundException" in reason
    isolated = aws.run("isolated-secret", EnableNetworkIsolation=True, **given)
    assert "no credentials to read it with" in isolated["FailureReason"]


def test_a_channel_cannot_overwrite_the_jobs_own_files(aws: Requests) -> None:
    aws.s3.put_object(Bucket="local", Key="evil/hyperparameters.json", Body=b"{}")
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://local/evil/", "S3DataDistributionType": "FullyReplicated"}
    for name in ("..", "."):
        channel = {"ChannelName": name, "DataSource": {"S3DataSource": source}}
        with pytest.raises(ClientError, match="is not a channel name"):
            aws.sm.create_training_job(**aws.job("channel-above", InputDataConfig=[channel]))
