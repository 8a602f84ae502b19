"""The local SageMaker of platform local: there when a verb needs it, gone when nothing does, one for all verbs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harness import shell
from harness.errors import Busy, NotFound
from harness.local import control
from harness.local.control import Server
from harness.paths import local_state
from harness.record import Record, create
from harness.run import platforms, status
from harness.run.platforms import Target
from harness.sagemaker.client import RunClient
from harness.spec.profile import LOCAL
from tests.conftest import ROOT
from tests.emulator.conftest import BIN, client
from tests.emulator.left_over import containers
from tests.emulator.requests import Requests, job_request

pytestmark = pytest.mark.emulator
RUNNING = {"status": "InProgress", "secondary_status": "Training"}  # as a verb left it in the record that was killed


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of this test's directory of runs; whatever a test leaves up is ended."""
    monkeypatch.setenv("DJL_SERVING", str(BIN / "djl-serving"))
    yield local_state()
    control.down(local_state())
    assert containers(local_state()) == []


def up(state: Path, said: list[str] | None = None, executor: str = "process", start: bool = True):
    return platforms.up(state, LOCAL, (said if said is not None else []).append, start, executor)


@contextmanager
def requests(server: Server) -> Iterator[Requests]:
    made = Requests(server, client)
    yield made
    made.close()


def left_by_a_killed_verb(state: Path, executor: str = "process") -> Server:
    """A server as a verb has started it that got KILL before it could stop it."""
    return platforms._started(state, LOCAL, executor)


def a_run(name: str = "x-20260101-000000-abcd", target: Target = platforms.DEFAULT) -> Record:
    return create(name, ROOT / "harness" / "runs" / "tinyllama-imdb.toml", platforms.texts(target))


@pytest.mark.left_behind(
    "local SageMaker", "success", "the command that started it, unless an endpoint or a job needs it"
)
def test_it_starts_when_a_verb_needs_it_and_stops_behind_the_verb(state: Path) -> None:
    for _ in range(2):
        said: list[str] = []
        with up(state, said) as server:
            assert control.health(server) is not None
        assert control.find(state) is None
        assert not psutil.pid_exists(server.pid)
        assert said == [f"started a local SageMaker on {server.url}", "stopped the local SageMaker"]


INTERRUPTED = """
import os, signal
from harness import interrupts
from harness.local import control
from harness.run import platforms
from harness.spec.profile import LOCAL
start = control.up
def up(*args, **more):
    started = start(*args, **more)
    os.kill(os.getpid(), signal.SIGINT)
    return started
control.up = up
interrupts.install()
with platforms.up(platforms.local_state(), LOCAL, print):
    print("used")
"""


@pytest.mark.left_behind("local SageMaker", "Ctrl-C", "the command")
def test_ctrl_c_while_it_starts_leaves_none(state: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Interrupted" in done.stderr, done.stdout + done.stderr
    assert done.stdout.strip() == "stopped the local SageMaker"
    assert control.find(state) is None


def test_one_that_was_started_by_hand_stays(state: Path) -> None:
    server = left_by_a_killed_verb(state)
    command = [sys.executable, "-m", "harness", "local", "up"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == server.url, "it is up already, and is the user's from now on"
    with up(state) as found:
        assert found == server
    assert control.find(state) == server


def test_it_stays_while_an_endpoint_lives(state: Path) -> None:
    with up(state) as server, requests(server) as aws:
        assert aws.deploy("living")["EndpointStatus"] == "InService"
    assert control.find(state) == server
    with up(state) as found:
        assert found == server
    assert control.find(state) == server, "the next verb leaves it, too"
    with up(state) as found, requests(found) as aws:
        aws.delete("living")
    assert control.find(state) is None


def test_it_stays_while_a_job_runs_that_nobody_follows(state: Path) -> None:
    with up(state) as server, requests(server) as aws:
        aws.sm.create_training_job(**aws.job("running", "time.sleep(50)"))
    assert control.find(state) == server
    with up(state) as found, requests(found) as aws:
        aws.sm.stop_training_job(TrainingJobName="running")
        assert aws.ended("running")["TrainingJobStatus"] == "Stopped"
    assert control.find(state) is None


def test_two_verbs_share_it_and_neither_stops_it_under_the_other(state: Path) -> None:
    said: list[str] = []
    with up(state, said) as first:
        with up(state, said) as second:
            assert second == first
        assert control.health(first) is not None, "the first one still uses it"
        with up(state, said, start=False) as third:
            assert third == first
        assert control.health(first) is not None
    assert control.find(state) is None
    assert len(said) == 2


def test_verbs_that_start_at_the_same_moment_get_one_server(state: Path) -> None:
    count = 4
    together, done = threading.Barrier(count), threading.Barrier(count)

    def verb(_: int) -> int:
        together.wait(60)
        with up(state) as server:
            done.wait(60)
            return server.pid

    with ThreadPoolExecutor(count) as pool:
        assert len(set(pool.map(verb, range(count)))) == 1
    shell.reap()
    assert control.find(state) is None


@pytest.mark.left_behind("local SageMaker", "KILL", "the next command; `harness local down`")
def test_the_last_verb_stops_it_also_one_that_only_looks(state: Path) -> None:
    left_by_a_killed_verb(state)
    with up(state, start=False) as server:
        assert control.health(server) is not None
    assert control.find(state) is None


def test_another_executor_replaces_an_idle_one(state: Path) -> None:
    before = left_by_a_killed_verb(state)
    with up(state, executor="docker") as server:
        assert (server.executor, server.pid != before.pid) == ("docker", True)
    assert control.find(state) is None


def test_another_executor_waits_for_one_that_works(state: Path) -> None:
    with up(state) as server, requests(server) as aws:
        aws.sm.create_training_job(**aws.job("running", "time.sleep(50)"))
    with pytest.raises(Busy) as error, up(state, executor="docker"):
        pass
    (problem,) = error.value.problems
    assert problem.what == "the local SageMaker that is up runs containers with executor process, not docker"
    assert "harness local down" in problem.hint
    with up(state, executor="docker", start=False) as found:
        assert found == server, "who only looks does not mind"


def test_another_verb_that_uses_it_is_not_robbed_of_it(state: Path) -> None:
    with up(state) as server:
        with pytest.raises(Busy), up(state, executor="docker"):
            pass
        assert control.find(state) == server


def test_what_only_looks_starts_none(state: Path) -> None:
    record = a_run()
    record.write_json("job.json", {"name": record.id, "region": LOCAL.region, **RUNNING})
    assert [(run.run, run.training) for run in status.overview()] == [(record.id, "Interrupted")]
    with pytest.raises(NotFound, match="is not up"), up(state, start=False):
        pass
    assert not state.exists()


def test_how_a_job_ended_is_known_after_its_server_was_stopped(state: Path) -> None:
    record = a_run()
    record.write_json("job.json", {"name": record.id, "region": LOCAL.region, **RUNNING})
    with up(state) as server, requests(server) as aws:
        aws.run(record.id)
    assert control.find(state) is None
    assert status.of(record).training == "Completed"


@pytest.mark.parametrize(
    "settings",
    [
        {"AWS_PROFILE": "no-such-section"},
        {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"},
        {"AWS_CONFIG_FILE": "broken", "AWS_SHARED_CREDENTIALS_FILE": "broken"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_for_aws_do_not_matter_here(
    state: Path, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").write_text("[profile\nnonsense")
    for name, value in settings.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value == "broken" else value)
    record = a_run()
    with platforms.opened(record, lambda _: None) as run:
        request = job_request(record.id, "(B/'model'/'w').write_text('w'); print('step=1')")
        artifact = run.jobs.train(request, lambda *_: None, lambda: None)
        assert run.transfer.head(artifact, LOCAL.region) is not None
        assert record.log.read_text() == "step=1\n"
        assert status.of(record).training == "Completed"
    assert control.find(state) is None


def test_a_server_that_was_killed_is_started_again_and_its_containers_ended(state: Path) -> None:
    record = a_run()
    with platforms.opened(record, lambda _: None) as run, requests(control.need(state)) as aws:
        run.resources.create("training-job", aws.job(record.id, "time.sleep(50)"), LOCAL.region)
        aws.until(record.id, lambda d: d["SecondaryStatus"] == "Training")
        os.kill(control.need(state).pid, signal.SIGKILL)
    assert containers(state) != []
    with platforms.opened(record, lambda _: None) as run:
        assert isinstance(run, RunClient)
        found = run.resources.describe("training-job", record.id, LOCAL.region)
    assert found is not None
    assert found["TrainingJobStatus"] == "Failed"
    assert containers(state) == []
