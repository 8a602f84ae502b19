"""Refused calls, expired credentials, damaged records: nothing is deleted by mistake, and nothing is left running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.main import app
from harness.errors import EndpointFailed, HarnessError, Refused
from harness.local import control
from harness.local.control import Server
from harness.record import Record
from harness.run import status, steps
from harness.sagemaker.client import RunClient
from harness.sagemaker.resources import Made
from harness.spec.profile import LOCAL
from tests.aws.test_platform import deployment, fault, run, tags
from tests.emulator.requests import Requests

__all__ = ["run"]  # a fixture
pytestmark = pytest.mark.emulator


@pytest.fixture(autouse=True)
def _no_faults_left(server: Server) -> Any:
    yield
    control.faults(server, "DELETE")


def status_of(requests: Requests, name: str) -> str:
    return str(requests.sm.describe_endpoint(EndpointName=name)["EndpointStatus"])


@pytest.mark.parametrize("kind", ["throttling", "expired-token", "access-denied"])
@pytest.mark.left_behind(
    "endpoint",
    ("expired credentials", "refused call"),
    "nobody: it is being made, and the message says that it goes on",
)
def test_a_refused_poll_deletes_no_endpoint_that_is_being_made_or_lives(
    run: RunClient, requests: Requests, server: Server, kind: str
) -> None:
    wanted = deployment(run, requests)
    for state in ("being made", "in service"):
        fault(server, kind=kind, operation="DescribeEndpoint", name=wanted.endpoint_name, times=9)
        with pytest.raises(Refused):
            run.deploy(wanted)
        control.faults(server, "DELETE")
        if state == "being made":
            run.deploy(wanted)
        assert status_of(requests, wanted.endpoint_name) == "InService"
    assert Made("endpoint", wanted.endpoint_name, "us-west-2") in run.resources.made()
    assert run.down()


def test_an_endpoint_that_has_failed_is_deleted(run: RunClient, requests: Requests, server: Server) -> None:
    wanted = deployment(run, requests)
    fault(server, kind="capacity", name=wanted.endpoint_name)
    with pytest.raises(EndpointFailed):
        run.deploy(wanted)
    assert list(run.endpoints()) == []


def test_one_refusal_in_the_middle_of_down_leaves_nothing_else_running(
    run: RunClient, requests: Requests, server: Server
) -> None:
    wanted = deployment(run, requests)
    run.deploy(wanted)
    request = requests.job(run.record.id, "time.sleep(60)", Tags=tags(run))
    run.resources.create("training-job", request, "us-west-2")
    fault(server, kind="access-denied", operation="StopTrainingJob", name="*")
    fault(server, kind="throttling", operation="DeleteEndpointConfig", name="*", times=9)
    with pytest.raises(Refused) as error:
        run.down()
    said = "\n".join(line for problem in error.value.problems for line in problem.lines())
    assert f"still there: training-job {run.record.id} in us-west-2, endpoint-config {wanted.endpoint_name}" in said
    assert "access denied" in said
    assert "throttles" in said
    assert list(run.endpoints()) == [], "the endpoint came after the job whose stop was refused"
    control.faults(server, "DELETE")
    assert set(run.down()) == {run.record.id, wanted.endpoint_name}


@pytest.mark.parametrize("word", ["bucket-brigade", "not-found", "already-exists", "does-not-exist"])
def test_a_name_with_the_words_of_error_messages_is_a_name(
    requests: Requests, server: Server, tmp_path: Path, word: str
) -> None:
    record = Record(f"{word}-20260101-000000-abcd", tmp_path / word)
    record.path.mkdir()
    images = {"train_image": requests.images["train"], "serve_image": requests.images["serve"]}
    run = RunClient(record, server.answering(LOCAL), lambda _: None, lambda: images)
    assert run.deploy(deployment(run, requests)).status == "InService"
    assert run.down() == [f"{record.id}-tuned"]


def test_another_runs_model_under_the_same_name_is_neither_taken_nor_deleted(
    run: RunClient, requests: Requests, server: Server
) -> None:
    wanted = deployment(run, requests)
    image = json.dumps(requests.images["serve"])
    model = json.loads(json.dumps(wanted.create_model).replace('{"placeholder": "serve_image"}', image))
    requests.sm.create_model(**{**model, "Tags": []})
    with pytest.raises(HarnessError, match="is not this run's"):
        run.deploy(wanted)
    run.down()
    assert requests.sm.describe_model(ModelName=wanted.endpoint_name)
    requests.sm.delete_model(ModelName=wanted.endpoint_name)


# -- damaged records


@pytest.fixture
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, Record]:
    """The newer one is damaged by the test."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("HARNESS_RUNS_DIR", str(runs))
    made = []
    for name in ("whole-20260101-000000-aaaa", "damaged-20260102-000000-bbbb"):
        record = Record(name, runs / name)
        record.path.mkdir(parents=True)
        (record.path / "run.toml").write_text("")
        made.append(record)
    return made[0], made[1]


DAMAGE = {
    "job.json": "{",
    "platform.json": '{"platform": "local"}',
    "run.json": "null",
    "plan.json": "[]",
    "ledger.jsonl": '{"event": "create"}\nnot json\n\xff',
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_record_hides_no_other(two_runs: tuple[Record, Record], file: str) -> None:
    whole, damaged = two_runs
    (damaged.path / file).write_text(DAMAGE[file], encoding="latin-1")
    found = {item.run: item for item in status.overview()}
    assert set(found) == {whole.id, damaged.id}
    assert found[whole.id].training == "not started"
    done = CliRunner().invoke(app, ["down", "--all"])
    assert not isinstance(done.exception, (KeyError, ValueError, TypeError)), done.exception


def test_a_damaged_plan_is_one_line_and_does_not_keep_down_from_working(two_runs: tuple[Record, Record]) -> None:
    _, damaged = two_runs
    (damaged.path / "run.json").write_text("{}")
    (damaged.path / "plan.json").write_text("{}")
    with pytest.raises(HarnessError, match="cannot be read") as error:
        steps.resume(damaged)
    assert error.value.exit_code == 3
    assert CliRunner().invoke(app, ["down", damaged.id]).exit_code == 0
