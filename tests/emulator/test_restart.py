"""What survives: a restart, and a crash of the server while it works."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from harness import shell
from harness.executors.process import scratch_of
from harness.local import control
from harness.local.control import Server
from harness.local.service import prefix_of
from tests.emulator.conftest import client, start
from tests.emulator.left_over import containers
from tests.emulator.requests import Requests

pytestmark = pytest.mark.emulator


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "state"
    yield folder
    for made in _made:
        made.close()
    _made.clear()
    control.down(folder)
    assert containers(folder) == []


_made: list[Requests] = []


def using(server: Server) -> Requests:
    _made.append(Requests(server, client))
    return _made[-1]


def kill(server: Server) -> None:
    os.kill(server.pid, signal.SIGKILL)
    while control._lives(server.pid):
        time.sleep(0.02)
    shell.reap()
    shell.reap()


SLOW = """
done = sorted(p.name for p in (B/'checkpoints').iterdir())
print('found', done, flush=True)
(B/'checkpoints'/f'step-{len(done)}').write_text('x')
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if len(done) < 1: print('waiting', flush=True); time.sleep(60)
"""


def running(aws: Requests, name: str) -> None:
    def there(shown: dict) -> bool:
        return shown["SecondaryStatus"] == "Training" and "waiting" in str(aws.logged(name))

    aws.until(name, there)


def test_jobs_objects_and_endpoints_survive_a_restart(state: Path) -> None:
    aws = using(start(state))
    aws.s3.create_bucket(Bucket="mine", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    aws.s3.put_object(
        Bucket="mine", Key="a/b", Body=b"1", Metadata={"sha": "x"}, ContentType="text/x", Tagging="run=7"
    )
    aws.s3.put_object(Bucket="mine", Key="odd//key/", Body=b"2")
    etag = aws.s3.head_object(Bucket="mine", Key="a/b")["ETag"]
    before = aws.run("kept", "(B/'model/w').write_text('w'); print('kept it')", Tags=[{"Key": "k", "Value": "v"}])
    aws.deploy("kept", FAKE_VERSION="7")
    for call, name in ((aws.sm.delete_endpoint_config, "EndpointConfigName"), (aws.sm.delete_model, "ModelName")):
        call(**{name: "kept"})  # an endpoint goes on without them, after a restart, too
    assert control.down(state)
    assert containers(state) == []

    aws = using(start(state))
    after = aws.sm.describe_training_job(TrainingJobName="kept")
    assert {**before, "ResponseMetadata": 0} == {**after, "ResponseMetadata": 0}
    assert aws.sm.list_tags(ResourceArn=after["TrainingJobArn"])["Tags"] == [{"Key": "k", "Value": "v"}]
    head = aws.s3.head_object(Bucket="mine", Key="a/b")
    assert (head["Metadata"], head["ContentType"], head["ETag"]) == ({"sha": "x"}, "text/x", etag)
    assert aws.s3.get_object_tagging(Bucket="mine", Key="a/b")["TagSet"] == [{"Key": "run", "Value": "7"}]
    assert aws.s3.get_object(Bucket="mine", Key="odd//key/")["Body"].read() == b"2"
    keys = [o["Key"] for o in aws.s3.list_objects_v2(Bucket="local", Prefix="out/")["Contents"]]
    assert keys == ["out/kept/output/model.tar.gz"]
    assert aws.settled("kept")["EndpointStatus"] == "InService"
    answer = aws.runtime.invoke_endpoint(EndpointName="kept", Body=b"{}")
    assert b'"version": "7"' in answer["Body"].read()
    assert list(aws.logged("kept").values()) == [["kept it"]]


def test_down_stops_a_job_with_its_checkpoint(state: Path) -> None:
    aws = using(start(state))
    checkpoints = {"S3Uri": "s3://local/ck"}
    aws.sm.create_training_job(**aws.job("long", SLOW, CheckpointConfig=checkpoints))
    running(aws, "long")
    control.down(state)
    assert containers(state) == []
    aws = using(start(state))
    assert aws.sm.describe_training_job(TrainingJobName="long")["TrainingJobStatus"] == "Stopped"
    assert [o["Key"] for o in aws.s3.list_objects_v2(Bucket="local", Prefix="ck/")["Contents"]] == ["ck/step-0"]


@pytest.mark.left_behind("process", "KILL", "the next local SageMaker, when the one before was killed")
def test_a_crash_is_found_and_settled(state: Path) -> None:
    aws = using(start(state))
    condition = {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120}
    checkpoints = {"S3Uri": "s3://local/ck-spot"}
    aws.sm.create_training_job(**aws.job("on-demand", SLOW))
    spot = {"EnableManagedSpotTraining": True, "StoppingCondition": condition, "CheckpointConfig": checkpoints}
    aws.sm.create_training_job(**aws.job("spot", SLOW, **spot))
    retried = {"RetryStrategy": {"MaximumRetryAttempts": 1}, "CheckpointConfig": {"S3Uri": "s3://local/ck-retry"}}
    aws.sm.create_training_job(**aws.job("retried", SLOW, **retried))
    aws.deploy("serving")
    for name in ("on-demand", "spot", "retried"):
        running(aws, name)
    kill(aws.server)
    assert len(set(containers(state))) == 4  # what the crash has left

    aws = using(start(state))
    shown = aws.sm.describe_training_job(TrainingJobName="on-demand")
    assert (shown["TrainingJobStatus"], shown["FailureReason"].split(":")[0]) == ("Failed", "InternalServerError")
    for name in ("spot", "retried"):
        shown = aws.ended(name)
        assert shown["TrainingJobStatus"] == "Completed"
        assert "Interrupted" in [t["Status"] for t in shown["SecondaryStatusTransitions"]]
        assert ["found ['step-0']"] in list(aws.logged(name).values())
    assert aws.settled("serving")["EndpointStatus"] == "InService"
    aws.delete("serving")
    assert containers(state) == []


@pytest.mark.left_behind(
    "directory", ("success", "failure", "Ctrl-C", "KILL"), "the local SageMaker, or the next one"
)
def test_no_directory_of_a_container_is_left(state: Path) -> None:
    aws = using(start(state))

    def there(*names: str) -> list[bool]:
        return [scratch_of(f"{prefix_of(state)}{name}").exists() for name in names]

    aws.sm.create_training_job(**aws.job("stopped", SLOW))
    running(aws, "stopped")
    assert there("stopped") == [True], "this is where it is"
    aws.sm.stop_training_job(TrainingJobName="stopped")
    aws.ended("stopped")
    aws.run("good")
    aws.run("bad", "sys.exit(3)")
    aws.deploy("asked")
    assert there("us-west-2-asked-1") == [True]
    aws.delete("asked")
    aws.sm.create_training_job(**aws.job("killed", SLOW))
    running(aws, "killed")
    kill(aws.server)
    assert there("stopped", "good", "bad", "us-west-2-asked-1", "killed") == [False] * 4 + [True]
    using(start(state))
    assert there("killed") == [False]


CLIENTS, JOBS = 40, 120


def test_nothing_acknowledged_is_lost_when_it_is_killed_under_forty_clients(state: Path) -> None:
    server = start(state)
    acknowledged, lock = {"jobs": list[str](), "objects": list[str]()}, threading.Lock()

    def note(kind: str, name: str) -> None:
        with lock:
            acknowledged[kind].append(name)

    def one_client(number: int) -> None:
        """Jobs and objects until it has made its share, or nobody answers any more."""
        mine = using(server)
        try:
            for job in range(JOBS // CLIENTS):
                for part in range(5):
                    key = f"clients/{number}-{job}-{part}"
                    mine.s3.put_object(Bucket="local", Key=key, Body=key.encode() * 1000)
                    note("objects", key)
                name = f"client-{number}-{job}"
                mine.sm.create_training_job(**mine.job(name, "(B/'model/w').write_text('w')"))
                note("jobs", name)
        except (BotoCoreError, ClientError):
            assert killed.is_set()

    killed = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(one_client, number) for number in range(CLIENTS)]
        while len(acknowledged["jobs"]) < JOBS // 2:
            time.sleep(0.01)
        killed.set()
        kill(server)
        for client_ in clients:
            client_.result()
    assert JOBS // 2 <= len(acknowledged["jobs"]) < JOBS, "the kill came too late to mean anything"

    aws = using(start(state))
    ends = {name: aws.ended(name, within=120)["TrainingJobStatus"] for name in acknowledged["jobs"]}
    assert set(ends.values()) <= {"Completed", "Failed"}
    for name, end in ends.items():  # one that ran when the server died has failed, as after an internal error
        keys = aws.s3.list_objects_v2(Bucket="local", Prefix=f"out/{name}/").get("Contents", [])
        assert end == "Failed" or [o["Key"] for o in keys] == [f"out/{name}/output/model.tar.gz"], name
    for key in acknowledged["objects"]:
        assert aws.s3.get_object(Bucket="local", Key=key)["Body"].read() == key.encode() * 1000
    assert aws.run("afterwards")["TrainingJobStatus"] == "Completed"
    print(f"{len(ends)} jobs and {len(acknowledged['objects'])} objects acknowledged, none lost")


def test_several_side_by_side_and_a_second_up(state: Path, tmp_path: Path) -> None:
    first, other = start(state), start(tmp_path / "other")
    try:
        assert first.port != other.port
        assert start(state) == first
        aws = using(first)
        aws.run("only-here")
        assert using(other).sm.list_training_jobs()["TrainingJobSummaries"] == []
    finally:
        control.down(tmp_path / "other")
    assert not control.down(tmp_path / "other")
