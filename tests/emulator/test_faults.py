"""Faults on demand: each looks as AWS shows it, and happens once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError, EventStreamError

from harness.errors import InvalidInput
from harness.executors.spec import MARKER
from harness.local import control
from tests.emulator.requests import Requests

pytestmark = pytest.mark.emulator

STEPS = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
at = len(list((B/'checkpoints').iterdir()))
for n in range(at, 4):
    (B/'checkpoints'/f'c-{n}').write_text('x'); print(f'step={n+1}/4 loss=1', flush=True); time.sleep(0.4)
(B/'model'/'w').write_text('w')
"""


@pytest.fixture
def fault(aws: Requests) -> Iterator[Any]:
    def add(kind: str, **given: Any) -> None:
        control.faults(aws.server, "POST", {"kind": kind, **given})

    yield add
    left = control.faults(aws.server, "GET")["faults"]
    control.faults(aws.server, "DELETE")
    assert left == []  # each has happened


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("throttling", "ThrottlingException", "Rate exceeded"),
        ("expired-token", "ExpiredTokenException", "security token included in the request is expired"),
        ("access-denied", "AccessDeniedException", "is not authorized to perform: sagemaker:CreateTrainingJob"),
        ("quota", "ResourceLimitExceeded", "'ml.trn1.2xlarge for training job usage' is 0 Instances"),
    ],
)
def test_a_call_is_refused_once(aws: Requests, fault: Any, kind: str, code: str, message: str) -> None:
    name = f"fault-{kind}"
    fault(kind, operation="CreateTrainingJob", name="fault-*")
    with pytest.raises(ClientError, match=message) as error:
        aws.sm.create_training_job(**aws.job(name))
    assert error.value.response["Error"]["Code"] == code
    assert aws.run(name)["TrainingJobStatus"] == "Completed"


def test_no_capacity_fails_job_and_endpoint(aws: Requests, fault: Any) -> None:
    fault("capacity", name="no-room*", times=2)
    assert aws.run("no-room")["FailureReason"].startswith("CapacityError: Unable to provision requested ML compute")
    shown = aws.deploy("no-room-endpoint")
    assert (shown["EndpointStatus"], "InsufficientInstanceCapacity" in shown["FailureReason"]) == ("Failed", True)
    aws.delete("no-room-endpoint")


def test_a_killed_process_fails_the_job_at_its_step(aws: Requests, fault: Any) -> None:
    fault("out-of-memory", name="oom", after=2)
    shown = aws.run("oom", STEPS)
    assert (shown["TrainingJobStatus"], shown["FailureReason"]) == ("Failed", "AlgorithmError: exit code 137")
    lines = next(iter(aws.logged("oom").values()))
    assert "step=2/4 loss=1" in lines and "step=4/4 loss=1" not in lines


def test_a_spot_job_goes_on_where_it_was(aws: Requests, fault: Any) -> None:
    fault("spot", name="reclaimed", after=2)
    condition = {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}
    spot = {"EnableManagedSpotTraining": True, "StoppingCondition": condition}
    shown = aws.run("reclaimed", STEPS, CheckpointConfig={"S3Uri": "s3://local/ck-reclaimed"}, **spot)
    assert shown["TrainingJobStatus"] == "Completed"
    order = [t["Status"] for t in shown["SecondaryStatusTransitions"]]
    assert order[:5] == ["Starting", "Downloading", "Training", "Stopping", "Interrupted"]
    assert order[5:] == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    first, second = aws.logged("reclaimed").values()
    assert first[0] == "step=1/4 loss=1" and second[0] != "step=1/4 loss=1" and second[-1] == "step=4/4 loss=1"
    assert shown["BillableTimeInSeconds"] <= shown["TrainingTimeInSeconds"]


def test_a_full_disk_fails_the_upload(aws: Requests, fault: Any) -> None:
    fault("disk-full", name="full")
    shown = aws.run("full", "(B/'model/w').write_text('w')")
    assert shown["FailureReason"] == "ClientError: Artifact upload failed: no space left on the disk"


def test_pings_that_fail_and_pings_that_come_late(aws: Requests, fault: Any) -> None:
    fault("slow-ping", name="late", after=2)
    began = time.monotonic()
    assert aws.deploy("late")["EndpointStatus"] == "InService"
    assert time.monotonic() - began > 2
    aws.delete("late")


@pytest.mark.left_behind("process", "failure", "SageMaker, when the endpoint has failed")
def test_pings_that_never_succeed_fail_the_endpoint_and_leave_nothing(aws: Requests, fault: Any) -> None:
    fault("failing-ping", name="sick", after=2)
    began = time.monotonic()
    shown = aws.deploy("sick")
    assert (shown["EndpointStatus"], time.monotonic() - began > 2) == ("Failed", True)
    assert shown["FailureReason"].startswith(
        "The primary container for production variant AllTraffic did not pass the ping health check."
    )
    with pytest.raises(ClientError, match="Endpoint sick of account 000000000000 not found"):
        aws.runtime.invoke_endpoint(EndpointName="sick", Body=b"{}")
    assert [p for p in psutil.process_iter() if "sick" in _marker(p)] == []
    aws.delete("sick")


def test_an_update_whose_pings_fail_rolls_back(aws: Requests, fault: Any) -> None:
    aws.deploy("well", FAKE_VERSION="1")
    aws.config("well-2", FAKE_VERSION="2")
    fault("failing-ping", name="well", after=1)
    aws.sm.update_endpoint(EndpointName="well", EndpointConfigName="well-2")
    shown = aws.settled("well")
    assert (shown["EndpointConfigName"], "ping health check" in shown["FailureReason"]) == ("well", True)
    assert b'"version": "1"' in aws.runtime.invoke_endpoint(EndpointName="well", Body=b"{}")["Body"].read()
    aws.delete("well")


def _marker(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARKER, "")
    except (psutil.Error, OSError):
        return ""


def test_hosts_that_start_late(aws: Requests, fault: Any) -> None:
    fault("late-hosts", name="late-hosts", after=2)
    resources = {"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    code = "r=json.loads((B/'input/config/resourceconfig.json').read_text())\n"
    code += "(B/'model'/r['current_host']).write_text('')\nprint('began', time.time())"
    assert aws.run("late-hosts", code, ResourceConfig=resources)["TrainingJobStatus"] == "Completed"
    first, second = (float(lines[0].split()[1]) for _, lines in sorted(aws.logged("late-hosts").items()))
    assert second - first > 1.9


def test_streams_and_invocations_that_break(aws: Requests, fault: Any) -> None:
    aws.deploy("torn")
    fault("torn-stream", name="torn", after=1)
    body = json.dumps({"do": "stream", "parts": 4, "pause": 0.1})
    stream = aws.runtime.invoke_endpoint_with_response_stream(EndpointName="torn", Body=body)["Body"]
    seen = []
    with pytest.raises(EventStreamError, match="ModelStreamError"):
        for event in stream:
            seen.append(event)
    stream.close()
    assert len(seen) == 1
    fault("model-timeout", name="torn")
    with pytest.raises(ClientError, match="Your invocation timed out") as error:
        aws.runtime.invoke_endpoint(EndpointName="torn", Body=b"{}")
    assert error.value.response["OriginalStatusCode"] == 0
    aws.delete("torn")


def test_what_is_no_fault_is_refused(aws: Requests) -> None:
    for wrong in ({"kind": "none"}, {"kind": "spot", "when": 1}, {"kind": "spot", "after": -1}):
        with pytest.raises(InvalidInput):
            control.faults(aws.server, "POST", wrong)
