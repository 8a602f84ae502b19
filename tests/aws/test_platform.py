"""Platform sagemaker against the local SageMaker: real small jobs and endpoints behind the real API."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.errors import EndpointFailed, Interrupted, JobFailed, NotFound, Refused
from harness.local import control
from harness.local.control import Server
from harness.record import Record
from harness.run import cleanup as ending, steps
from harness.sagemaker import jobs, resources
from harness.sagemaker.client import RunClient
from harness.spec.plan import EXPIRES_TAG, RUN_TAG, Deployment
from harness.spec.profile import LOCAL
from tests.emulator.requests import IMAGE, ROLE, Requests

pytestmark = pytest.mark.emulator
GOOD = "(B/'model'/'w').write_text('w'); (B/'output/data/metrics.jsonl').write_text('{}'); print('step=1/1 loss=0.5')"


@pytest.fixture
def run(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> RunClient:
    words = re.sub(r"\W+", "-", request.node.name.replace("_", "-"))
    name = f"{words[5:20].strip('-')}-{words[-9:].strip('-')}-20260101-000000-abcd"
    record = Record(name, tmp_path / name)
    record.path.mkdir()
    profile = server.answering(LOCAL)
    return RunClient(record, profile, lambda _: None, lambda: {"train_image": IMAGE, "serve_image": IMAGE})


def tags(run: RunClient) -> list[dict[str, str]]:
    return [{"Key": RUN_TAG, "Value": run.record.id}]


def train(run: RunClient, requests: Requests, code: str = GOOD) -> str:
    request = requests.job(run.record.id, code, Tags=tags(run))
    return run.jobs.train(request, lambda *_: None, lambda: None)


def created(run: RunClient) -> Counter[str]:
    return Counter(line["name"] for line in run.record.ledger() if line["event"] == "created")


def fault(server: Server, **what: Any) -> None:
    control.faults(server, "POST", what)


def deployment(run: RunClient, requests: Requests) -> Deployment:
    requests.model_files()
    name = f"{run.record.id}-tuned"
    source = {"S3Uri": "s3://local/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    model = {"Image": {"placeholder": "serve_image"}, "ModelDataSource": {"S3DataSource": source}}
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.inf2.xlarge"}
    expires = {"Key": EXPIRES_TAG, "Value": {"placeholder": "expires"}}
    return Deployment(
        {"ModelName": name, "PrimaryContainer": model, "ExecutionRoleArn": ROLE, "Tags": tags(run)},
        {
            "EndpointConfigName": name,
            "ProductionVariants": [{**variant, "InitialInstanceCount": 1}],
            "Tags": tags(run),
        },
        {"EndpointName": name, "EndpointConfigName": name, "Tags": [*tags(run), expires]},
    )


def test_a_job_is_done_once_and_its_outputs_come_back(run: RunClient, requests: Requests) -> None:
    artifact = train(run, requests)
    assert artifact.endswith("/output/model.tar.gz")
    assert train(run, requests) == run.artifact_uri() == artifact
    assert created(run) == {run.record.id: 1}
    assert (run.outputs() / "metrics.jsonl").read_text() == "{}"
    assert run.record.log.read_text() == "step=1/1 loss=0.5\n"
    assert run.running_job() is None


@pytest.mark.left_behind("training job", "failure", "SageMaker: it has ended")
def test_a_failed_job_says_why_and_the_next_attempt_has_its_own_name(run: RunClient, requests: Requests) -> None:
    with pytest.raises(JobFailed) as error:
        train(run, requests, "(B/'output/failure').write_text('no such layer'); sys.exit(1)")
    assert "no such layer" in error.value.problems[0].why
    with pytest.raises(NotFound):
        run.artifact_uri()
    assert f"/{run.record.id}-r2/" in train(run, requests)
    assert created(run) == {run.record.id: 1, f"{run.record.id}-r2": 1}


def test_capacity_is_tried_again_and_then_another_place_is_named(
    run: RunClient, requests: Requests, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CAPACITY_WAIT", (0.0, 0.0))
    fault(server, kind="capacity", name=f"{run.record.id}*", times=3)
    with pytest.raises(JobFailed) as error:
        train(run, requests)
    assert 'compute: "ml.trn1.32xlarge", or another region' in error.value.problems[0].hint
    assert len(created(run)) == jobs.ATTEMPTS_FOR_CAPACITY
    assert f"/{run.record.id}-r4/" in train(run, requests)


def test_a_job_that_runs_is_told_taken_up_and_stopped_by_down(run: RunClient, requests: Requests) -> None:
    class Gone(Exception):
        pass

    def leave(status: str, _: str) -> None:
        if status == "Training":
            raise Gone

    request = requests.job(run.record.id, "time.sleep(50)", Tags=tags(run))
    with pytest.raises(Gone):
        run.jobs.train(request, leave, lambda: None)
    job = run.running_job()
    assert job is not None
    assert (job["name"], job["region"]) == (run.record.id, "us-west-2")
    assert run.down() == [run.record.id]
    assert run.down() == []
    with pytest.raises(JobFailed, match="ended as Stopped"):  # the job is waited for by name, and was stopped
        found = run.resources.describe("training-job", run.record.id, "us-west-2")
        assert found is not None
        raise run.jobs._job_failed(run.record.id, found, "", run.record.log)


@pytest.mark.parametrize(
    ("kind", "said"), [("expired-token", "have expired"), ("access-denied", "denied"), ("quota", "a quota")]
)
def test_refusals_end_at_once(run: RunClient, requests: Requests, server: Server, kind: str, said: str) -> None:
    fault(server, kind=kind, operation="CreateTrainingJob", times=1)
    with pytest.raises(Refused, match=said):
        train(run, requests)
    assert created(run) == {}
    assert train(run, requests), "and the same command goes on"
    run.aws.call("sagemaker", "list_models")


@pytest.mark.left_behind(("endpoint configuration", "model"), "success", "the command; `harness down`")
def test_an_endpoint_is_kept_asked_expired_and_deleted_whole(run: RunClient, requests: Requests) -> None:
    wanted = deployment(run, requests)
    endpoint = run.deploy(wanted, lambda: None, ttl=3600)
    assert run.deploy(wanted, lambda: None) == endpoint
    assert created(run)[endpoint.name] == 4, "schedule, model, configuration, endpoint, once each"
    assert b'"body"' in run.invoke(endpoint, {"do": "echo"})
    assert b"".join(run.invoke_stream(endpoint, {"do": "stream", "parts": 3})).count(b"part") == 3
    with pytest.raises(EndpointFailed, match="the container answered 400") as error:
        run.invoke(endpoint, {"do": "status", "status": 400, "text": "too long"})
    assert "too long" in error.value.problems[0].why
    assert ending.expire(run, lambda _: None) == [], "its hour is not over"
    requests.sm.add_tags(
        ResourceArn=requests.sm.describe_endpoint(EndpointName=endpoint.name)["EndpointArn"],
        Tags=[{"Key": EXPIRES_TAG, "Value": "2020-01-01T00:00:00Z"}],
    )
    assert ending.expire(run, lambda _: None) == [endpoint.name]
    assert run.down() == []
    for kind in resources.DELETION:
        assert resources.named(run.aws, kind, run.record.id, "us-west-2") == []


@pytest.mark.left_behind(("endpoint", "endpoint configuration", "model", "schedule"), "failure", "the command")
def test_a_failed_endpoint_says_the_containers_reason_and_leaves_nothing(run: RunClient, requests: Requests) -> None:
    wanted = deployment(run, requests)
    wanted.create_model["PrimaryContainer"]["Environment"] = {"FAKE_BREAKS": "at start"}
    with pytest.raises(EndpointFailed, match="is Failed") as error:
        run.deploy(wanted, lambda: None)
    assert "RuntimeError: no such model" in error.value.problems[0].why
    for kind in resources.DELETION:
        assert resources.named(run.aws, kind, run.record.id, "us-west-2") == []
    assert run.resources.made() == [], "its schedule neither"


@pytest.mark.left_behind(
    ("endpoint", "endpoint configuration", "model", "schedule"),
    "Ctrl-C",
    "on this machine the command; on AWS nobody: it goes on, and the message says so",
)
def test_an_endpoint_that_is_made_goes_on_at_aws_after_an_interruption_and_is_deleted_here(
    run: RunClient, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Said:
        def say(self, text: str) -> None: ...

        def progress(self, label: str, done: int, total: int) -> None: ...

    def interrupt(*_: Any) -> None:
        raise Interrupted(2)

    wanted = deployment(run, requests)
    monkeypatch.setattr(run.hosting, "_wait_in_service", interrupt)
    for local, left in ((False, 1), (True, 0)):
        monkeypatch.setattr(run, "local", local)
        with pytest.raises(Interrupted):
            steps.deploy(run, wanted, Said())
        for kind in resources.DELETION:
            assert len(resources.named(run.aws, kind, run.record.id, "us-west-2")) == left
        schedules = requests.client("scheduler").list_schedules(NamePrefix=run.record.id)["Schedules"]
        assert len(schedules) == left


def test_parts_of_an_endpoint_that_is_refused_are_deleted(run: RunClient, requests: Requests, server: Server) -> None:
    fault(server, kind="quota", operation="CreateEndpoint", name=f"{run.record.id}*", times=1)
    with pytest.raises(Refused, match="a quota"):
        run.deploy(deployment(run, requests))
    for kind in resources.DELETION:
        assert resources.named(run.aws, kind, run.record.id, "us-west-2") == []


def test_what_carries_no_tag_of_ours_is_not_touched(run: RunClient, requests: Requests) -> None:
    wanted = deployment(run, requests)
    model = {k: v for k, v in wanted.create_model.items() if k != "Tags"}
    model["PrimaryContainer"] = {**model["PrimaryContainer"], "Image": IMAGE}
    requests.sm.create_model(**model)
    run.record.note("create", kind="model", operation="CreateModel", name=model["ModelName"], region="us-west-2")
    assert run.down() == []
    assert resources.named(run.aws, "model", run.record.id, "us-west-2") == [model["ModelName"]]
    found = ending.sweep_list(run.aws, run.record.id, ["us-west-2"])
    assert [item.kind for item in found] == ["model"]
    ending.sweep(run.aws, found, 0.1, lambda _: None)
    assert ending.sweep_list(run.aws, run.record.id, ["us-west-2"]) == []


@pytest.mark.left_behind(("endpoint configuration", "model"), "KILL", "the next command")
def test_parts_of_an_endpoint_that_a_killed_command_left_are_settled(run: RunClient, requests: Requests) -> None:
    endpoint = run.deploy(deployment(run, requests), lambda: None)
    run.settle()
    assert [e.status for e in run.endpoints()] == ["InService"], "what is whole stays"
    requests.sm.delete_endpoint(EndpointName=endpoint.name)  # killed behind this call
    requests.sm.get_waiter("endpoint_deleted").wait(EndpointName=endpoint.name, WaiterConfig={"Delay": 1})
    run.settle()
    for kind in resources.DELETION:
        assert resources.named(run.aws, kind, run.record.id, "us-west-2") == []
    assert run.resources.made() == []


def test_a_create_whose_end_was_not_noted_is_found_by_down(run: RunClient, requests: Requests) -> None:
    """Killed between the call and the ledger's second line, and once more after a deletion that came too early."""
    wanted = deployment(run, requests)
    name = wanted.endpoint_name
    request = {**wanted.create_model, "PrimaryContainer": {**wanted.create_model["PrimaryContainer"], "Image": IMAGE}}
    run.record.note("create", kind="model", operation="CreateModel", name=name, region="us-west-2")
    assert run.down() == []
    requests.sm.create_model(**request)
    assert run.down() == [name]
    requests.sm.create_model(**request)
    run.resources.create("model", request, "us-west-2")  # is there and ours: adopted
    assert run.down() == [name]
