"""Refused, forgotten, cut off: at every call that makes something, and what `down` finds afterwards."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.aws import transfer
from harness.aws.session import Aws
from harness.errors import Interrupted, Refused
from harness.local import control
from harness.local.control import Server
from harness.record import Record
from harness.sagemaker import resources
from harness.sagemaker.client import RunClient
from harness.sagemaker.takedown import COPY
from harness.spec.profile import LOCAL
from tests.aws.test_platform import deployment, fault, tags
from tests.emulator.requests import IMAGE, Requests

pytestmark = pytest.mark.emulator
PART = 5 << 20


_NUMBERS = itertools.count(1)


@pytest.fixture
def run(server: Server, tmp_path: Path) -> RunClient:
    """Of a name that no other test here has: they differ in their last words."""
    name = f"cut-off-{next(_NUMBERS):02}-20260101-000000-abcd"
    record = Record(name, tmp_path / name)
    record.path.mkdir()
    images = {"train_image": IMAGE, "serve_image": IMAGE}
    return RunClient(record, server.answering(LOCAL), lambda _: None, lambda: images)


class Wire:
    """A way to the server that can be cut: what has been sent arrives, an answer does not."""

    def __init__(self, port: int) -> None:
        self.target, self.connected = ("127.0.0.1", port), True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self.listener.accept()
                if not self.connected:
                    ours.close()
                    continue
                theirs = socket.create_connection(self.target)
                self.sockets += [ours, theirs]
                for ends in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self.connected = False
        for end in self.sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self.listener.close()
        for end in self.sockets:
            end.close()


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    made = Wire(server.port)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_faults_left(server: Server) -> Iterator[None]:
    yield
    control.faults(server, "DELETE")


FAULTS = {"expired credentials": "expired-token", "refused call": "access-denied"}
ENDINGS = [*FAULTS, "lost network"]


def over_the_wire(run: RunClient, wire: Wire) -> RunClient:
    """The same run, by another process whose connection can be cut."""
    profile = replace(run.profile, endpoint_url=wire.url)
    return RunClient(run.record, profile, lambda _: None, run._find_images)


class At:
    """Makes a client's calls fail from the `operation` on: `before` the service has done it, or behind it."""

    def __init__(self, operation: str, ending: str, server: Server, wire: Wire, before: bool) -> None:
        self.operation, self.ending, self.server, self.wire, self.before = operation, ending, server, wire, before

    def fit(self, aws: Aws) -> None:
        call: Callable[..., Any] = aws.call

        def failing(service: str, operation: str, region: str = "", **request: Any) -> Any:
            if operation != self.operation:
                return call(service, operation, region, **request)
            if self.ending == "lost network":
                if not self.before:
                    call(service, operation, region, **request)
                self.wire.cut()
            else:
                name = "".join(word.capitalize() for word in operation.split("_"))
                fault(self.server, kind=FAULTS[self.ending], operation=name, times=9)
            return call(service, operation, region, **request)

        aws.call = failing  # type: ignore[method-assign]


def nothing_is_left(run: RunClient, requests: Requests) -> None:
    assert run.resources.made() == []
    for kind in resources.DELETION:
        assert resources.named(run.aws, kind, run.record.id, "us-west-2") == [], kind
    jobs = requests.sm.list_training_jobs(NameContains=run.record.id)["TrainingJobSummaries"]
    assert {job["TrainingJobStatus"] for job in jobs} <= {"Stopped", "Completed", "Failed"}
    schedules = requests.client("scheduler").list_schedules(NamePrefix=run.record.id)["Schedules"]
    assert schedules == []


DEPLOYING = ["create_schedule", "create_model", "create_endpoint_config", "create_endpoint", "describe_endpoint"]


@pytest.mark.left_behind(
    ("endpoint", "endpoint configuration", "model", "schedule"),
    ("expired credentials", "refused call", "lost network"),
    "the command, as far as it may; else `harness down`, and an endpoint's schedule",
)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("operation", DEPLOYING)
def test_deploy_is_cut_off_and_down_finds_what_there_is(
    run: RunClient, requests: Requests, server: Server, wire: Wire, operation: str, ending: str
) -> None:
    cut = over_the_wire(run, wire)
    wanted = deployment(run, requests)
    At(operation, ending, server, wire, before=operation == "describe_endpoint").fit(cut.aws)
    if (operation, ending) == ("create_schedule", "refused call"):
        assert cut.deploy(wanted).status == "InService", "without an expiry, which it says: test_expiry.py"
    else:
        with pytest.raises(Refused):
            cut.deploy(wanted)
    control.faults(server, "DELETE")
    run.down()
    nothing_is_left(run, requests)


@pytest.mark.left_behind(
    "training job", ("expired credentials", "refused call", "lost network"), "nobody: it goes on; `harness down`"
)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("operation", ["create_training_job", "describe_training_job"])
def test_a_job_goes_on_without_its_command_and_down_stops_it(
    run: RunClient, requests: Requests, server: Server, wire: Wire, operation: str, ending: str
) -> None:
    cut = over_the_wire(run, wire)
    request = requests.job(run.record.id, "time.sleep(50)", Tags=tags(run))
    trouble = At(operation, ending, server, wire, before=False)
    if operation == "create_training_job":
        trouble.fit(cut.aws)
    with pytest.raises(Refused):
        cut.jobs.train(request, lambda *_: trouble.fit(cut.aws), lambda: None)
    control.faults(server, "DELETE")
    there = requests.sm.list_training_jobs(NameContains=run.record.id)["TrainingJobSummaries"]
    goes_on = operation.startswith("describe") or ending == "lost network"
    assert [job["TrainingJobStatus"] for job in there] == ["InProgress"] * goes_on
    assert run.down() == [run.record.id] * goes_on
    nothing_is_left_of_a_job(run, requests)


def nothing_is_left_of_a_job(run: RunClient, requests: Requests) -> None:
    jobs = requests.sm.list_training_jobs(NameContains=run.record.id)["TrainingJobSummaries"]
    assert {job["TrainingJobStatus"] for job in jobs} <= {"Stopped"}


@pytest.mark.left_behind(
    "upload in parts",
    ("expired credentials", "refused call", "lost network"),
    "the next command goes on with it; else `harness down`",
)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("operation", ["create_multipart_upload", "upload_part", "complete_multipart_upload"])
def test_an_upload_in_parts_that_is_cut_off_goes_on_or_is_given_up(
    run: RunClient,
    requests: Requests,
    server: Server,
    wire: Wire,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    ending: str,
) -> None:
    monkeypatch.setattr(transfer, "PART", PART)
    monkeypatch.setattr(transfer, "THREADS", 1)
    (tmp_path / "big").write_bytes(bytes(PART + 7))
    prefix = f"s3://local/{run.record.id}"
    cut = over_the_wire(run, wire)
    At(operation, ending, server, wire, before=True).fit(cut.aws)
    with pytest.raises(Refused):
        cut.transfer.upload(tmp_path / "big", prefix)
    control.faults(server, "DELETE")
    assert run.transfer.head(f"{prefix}/big") is None, "whole or not there"
    run.down()
    left = requests.s3.list_multipart_uploads(Bucket="local", Prefix=run.record.id).get("Uploads", [])
    assert left == []
    assert run.transfer.upload(tmp_path / "big", prefix) == PART + 7, "and it can be sent again"


@pytest.mark.left_behind("upload in parts", "Ctrl-C", "the next command goes on with it; else `harness down`")
def test_an_upload_that_is_interrupted_goes_on_or_is_given_up(
    run: RunClient, requests: Requests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PART", PART)
    (tmp_path / "big").write_bytes(bytes(2 * PART + 7))

    def interrupt(label: str, done: int, total: int) -> None:
        raise Interrupted(2)

    run.transfer.on_bytes = interrupt
    with pytest.raises(Interrupted):
        run.transfer.upload(tmp_path / "big", f"s3://local/{run.record.id}")
    (begun,) = requests.s3.list_multipart_uploads(Bucket="local", Prefix=run.record.id)["Uploads"]
    assert begun["Key"] == f"{run.record.id}/big"
    run.down()
    assert "Uploads" not in requests.s3.list_multipart_uploads(Bucket="local", Prefix=run.record.id)


@pytest.mark.left_behind(
    "copy of the artifact",
    ("expired credentials", "refused call", "lost network"),
    "`harness down`, when it may again",
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_copy_that_could_not_be_deleted_is_deleted_by_the_next_down(
    run: RunClient, requests: Requests, server: Server, wire: Wire, ending: str
) -> None:
    key = f"copies/{run.record.id}/model.tar.gz"
    requests.s3.put_object(Bucket="local", Key=key, Body=b"model")
    run.record.note("create", kind=COPY, name=f"s3://local/{key}", region="us-west-2")
    cut = over_the_wire(run, wire)
    At("delete_object", ending, server, wire, before=True).fit(cut.aws)
    with pytest.raises(Refused):
        cut.down()
    control.faults(server, "DELETE")
    assert run.down() == [f"s3://local/{key}"]
    assert run.transfer.head(f"s3://local/{key}") is None
    nothing_is_left(run, requests)


@pytest.mark.left_behind("half-written file", "lost network", "the command: a download is whole or not there")
def test_a_download_that_is_cut_off_leaves_no_file(
    run: RunClient, requests: Requests, wire: Wire, tmp_path: Path
) -> None:
    requests.s3.put_object(Bucket="local", Key=f"{run.record.id}/big", Body=bytes(PART))
    cut = over_the_wire(run, wire)
    passed = [0]

    def pass_on_some(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed[0] += len(data)
                if passed[0] > PART // 2:
                    wire.cut()
                target.sendall(data)

    wire._pass_on = pass_on_some  # type: ignore[method-assign]
    with pytest.raises(Refused):
        cut.transfer.download(f"s3://local/{run.record.id}/big", tmp_path / "there" / "big")
    assert list((tmp_path / "there").iterdir()) == []
