"""Platform local through the command line: real commands, real signals, a real small model, faults as AWS shows them.

One local SageMaker for all of them, as `harness local up` starts it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chain.conftest import ROOT, in_train_environment, write_tiny_run
from tests.chain.test_chain import left_over

pytestmark = [pytest.mark.server, pytest.mark.aws]  # two minutes: not in `make test`
SLOW = 1500  # steps: more than any of these tests waits for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("commands")
    in_train_environment("-m", "tests.chain.make_tiny_model", str(made / "tiny"))
    write_tiny_run(made / "tiny", made)
    text = (made / "tiny.toml").read_text()
    (made / "slow.toml").write_text(text.replace('"tiny"', '"slow"').replace("max_steps = 60", f"max_steps = {SLOW}"))
    assert harness(made, "local", "up").returncode == 0
    yield made
    ended = harness(made, "local", "down")
    assert ended.returncode == 0, ended.stderr
    assert left_over() == []


@pytest.fixture(autouse=True)
def _clean(folder: Path) -> Iterator[None]:
    """Every test leaves nothing running, and its successor finds no fault of it."""
    yield
    harness(folder, "local", "fault", "--clear")
    harness(folder, "down", "--all")
    assert there(folder) == []
    assert left_over() == []


def command(*words: str) -> list[str]:
    return [str(ROOT / ".venv" / "bin" / "python"), "-m", "harness", *words]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "HARNESS_RUNS_DIR": str(folder / ".runs"), "PYTHONPATH": str(ROOT)}


def harness(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def started(folder: Path, *words: str, until: str, stream: str = "stderr") -> subprocess.Popen[str]:
    """The command, running, as soon as it has printed `until`."""
    child = subprocess.Popen(
        command(*words),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    source, seen = getattr(child, stream), ""
    while until not in seen:
        line = source.readline()
        assert line, f"ended before it said {until!r}:\n{seen}"
        seen += line
    return child


def interrupted(child: subprocess.Popen[str], signum: int, code: int) -> str:
    child.send_signal(signum)
    child.send_signal(signum)  # somebody is impatient
    out, err = child.communicate(timeout=60)
    assert child.returncode == code, out + err
    assert "Traceback" not in err
    return err


def newest(folder: Path, name: str) -> str:
    return max(p.name for p in (folder / ".runs").glob(f"{name}-2*"))


def created(folder: Path, run_id: str) -> Counter[str]:
    lines = (folder / ".runs" / run_id / "ledger.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return Counter(e["name"] for e in events if e["event"] == "created")


def there(folder: Path) -> list[str]:
    """What the local SageMaker has of endpoints, configurations, models and running jobs, by its own files."""
    found = []
    for kind in ("endpoints", "endpoint-configs", "models", "training-jobs"):
        for path in (folder / ".local" / "sagemaker" / kind).rglob("*.json"):
            if kind != "training-jobs" or '"InProgress"' in path.read_text():
                found.append(f"{kind}/{path.stem}")
    return found


def shown(folder: Path, run_id: str) -> dict[str, object]:
    rows = json.loads(harness(folder, "ps", "--json").stdout)
    (row,) = [row for row in rows if row["run"] == run_id]
    return dict(row)


def test_ctrl_c_detaches_and_the_job_is_followed_again(folder: Path) -> None:
    child = started(folder, "train", "slow.toml", "--platform", "local", until="loss")
    err = interrupted(child, signal.SIGINT, 130)
    run_id = newest(folder, "slow")
    assert f"error: detached; training job {run_id} goes on in us-west-2" in err
    assert f"hint: follow it: harness train {run_id}; stop it: harness down {run_id}" in err
    row = shown(folder, run_id)
    assert (row["platform"], row["training"]) == ("local", "Training")

    log = started(folder, "logs", "-f", run_id, until="step=", stream="stdout")
    interrupted(log, signal.SIGINT, 130)
    assert shown(folder, run_id)["training"] == "Training", "who reads a log does not stop the job"

    again = started(folder, "train", run_id, until="loss")
    err = interrupted(again, signal.SIGTERM, 143)
    assert f"detached; training job {run_id} goes on" in err
    assert created(folder, run_id) == {run_id: 1}

    down = harness(folder, "down", run_id)
    assert (down.returncode, down.stdout) == (0, f"deleted: {run_id}\n"), down.stderr
    assert "stopping, with time for its checkpoint" in down.stderr
    assert shown(folder, run_id)["training"] == "Stopped"
    assert harness(folder, "down", run_id).stdout == "nothing to delete\n"


def test_a_detached_job_comes_to_its_end_and_its_log_is_whole(folder: Path) -> None:
    child = started(folder, "run", "tiny.toml", "--platform", "local", until="Training")
    err = interrupted(child, signal.SIGHUP, 129)
    run_id = newest(folder, "tiny")
    assert f"harness train {run_id}" in err
    log = harness(folder, "logs", "--follow", run_id)
    assert log.returncode == 0, "it ends with the job"
    done = harness(folder, "run", run_id, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"]["tuned"] == 1.0
    assert created(folder, run_id)[run_id] == 1
    steps = re.findall(
        r"^step=\d+/60 loss=", (folder / ".runs" / run_id / "logs" / "train.log").read_text(), re.MULTILINE
    )
    assert len(steps) == len(set(steps)) == 12, "each line once"
    assert steps == re.findall(r"^step=\d+/60 loss=", log.stdout, re.MULTILINE)
    assert there(folder) == [], "run takes down what it made"

    # The same trained run for what needs an endpoint: expiry, age, everything.
    deployed = harness(folder, "deploy", run_id, "--ttl", "1s")
    assert deployed.returncode == 0, deployed.stderr
    based = harness(folder, "deploy", run_id, "--base")
    assert based.returncode == 0, based.stderr
    time.sleep(1)
    assert harness(folder, "down", "--older-than", "1h").stdout == "nothing to delete\n"
    expired = harness(folder, "down", "--expired")
    assert expired.stdout == f"deleted: {run_id}-tuned\n", expired.stderr
    assert sorted(there(folder)) == [f"{kind}/{run_id}-base" for kind in ("endpoint-configs", "endpoints", "models")]
    assert harness(folder, "down", "--expired").stdout == "nothing to delete\n"
    log = started(folder, "logs", "-f", "--endpoint", "base", run_id, until="handler ready", stream="stdout")
    old = harness(folder, "down", "--older-than", "1s")
    assert old.stdout == f"deleted: {run_id}-base\n", old.stderr
    log.communicate(timeout=30)
    assert log.returncode == 0, "it ends with the endpoint"
    assert harness(folder, "down", "--all").stdout == "nothing to delete\n"
    both = harness(folder, "down", run_id, "--all")
    assert both.returncode == 3
    assert "give one of RUN, --all, --older-than and --expired" in both.stderr


def test_term_while_an_endpoint_is_made_deletes_it(folder: Path) -> None:
    trained = harness(folder, "train", "tiny.toml", "--platform", "local")
    assert trained.returncode == 0, trained.stderr
    run_id = trained.stdout.strip()
    child = started(folder, "deploy", run_id, until="Creating")
    time.sleep(1)  # its container is starting
    err = interrupted(child, signal.SIGTERM, 143)
    assert f"go on: harness deploy {run_id}" in err
    assert there(folder) == []


def fault(folder: Path, *words: str) -> None:
    done = harness(folder, "local", "fault", *words)
    assert done.returncode == 0, done.stderr


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """One message with the reason and what to do, and the exit code of its class."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1, done.stderr
    assert done.stderr.count("hint: ") == 1, done.stderr
    for text in said:
        assert text in done.stderr


def test_what_is_refused_before_anything_runs_ends_at_once_and_the_same_run_goes_on(folder: Path) -> None:
    create = ("--operation", "CreateTrainingJob")
    fault(folder, "expired-token", *create)
    first = harness(folder, "train", "tiny.toml", "--platform", "local")
    refused(first, 10, "the AWS credentials have expired", "aws sso login")
    run_id = newest(folder, "tiny")
    fault(folder, "access-denied", *create)
    refused(harness(folder, "train", run_id), 10, "create_training_job in us-west-2: access denied", "docs/aws.md")
    fault(folder, "quota")
    refused(harness(folder, "train", run_id), 10, "a quota of the account is used up", "Service Quotas")
    assert created(folder, run_id) == {}
    fault(folder, "throttling", *create, "--times", "2")
    fault(folder, "capacity", "--times", "3")
    done = harness(folder, "train", run_id)
    refused(done, 5, "CapacityError", 'compute: "ml.trn1.32xlarge", or another region')
    assert done.stderr.count("no capacity in us-west-2; attempt ") == 2
    assert sorted(created(folder, run_id)) == [run_id, f"{run_id}-r2", f"{run_id}-r3"]
    assert there(folder) == []
    fault(folder, "expired-token", "--operation", "DescribeTrainingJob", "--name", f"{run_id}-r4")
    refused(harness(folder, "train", run_id), 10, "have expired")
    assert shown(folder, run_id)["training"] == "Failed"
    assert harness(folder, "down", run_id).stdout == "nothing to delete\n"


def test_faults_of_a_job_and_of_endpoints(folder: Path) -> None:
    fault(folder, "disk-full")
    failed = harness(folder, "train", "tiny.toml", "--platform", "local")
    run_id = newest(folder, "tiny")
    refused(failed, 5, f"training job {run_id} ended as Failed", "no space left on the disk")
    assert there(folder) == []
    done = harness(folder, "train", run_id)
    assert done.returncode == 0, done.stderr
    assert sorted(created(folder, run_id)) == [run_id, f"{run_id}-r2"]
    for words, code, said in (
        (("access-denied", "--operation", "CreateEndpoint"), 10, "create_endpoint in us-west-2: access denied"),
        (("quota",), 10, "a quota of the account is used up"),
        (("capacity",), 6, "another region"),
        (("failing-ping", "--after", "2"), 6, "is Failed"),
    ):
        fault(folder, *words)
        refused(harness(folder, "deploy", run_id), code, said)
        assert there(folder) == [], words


def test_credentials_that_expire_while_a_job_is_followed_name_the_job_that_goes_on(folder: Path) -> None:
    child = started(folder, "train", "slow.toml", "--platform", "local", until="loss")
    fault(folder, "expired-token", "--operation", "DescribeTrainingJob")
    _, err = child.communicate(timeout=60)
    run_id = newest(folder, "slow")
    assert child.returncode == 10, err
    assert "the AWS credentials have expired" in err
    assert f"training job {run_id} goes on in us-west-2" in err
    assert f"follow it: harness train {run_id}; stop it: harness down {run_id}" in err
    assert shown(folder, run_id)["training"] == "Training"
    assert harness(folder, "down").stdout == f"deleted: {run_id}\n"


def test_a_spot_instance_is_taken_away_and_the_job_goes_on_from_its_checkpoint(folder: Path) -> None:
    text = (folder / "tiny.toml").read_text().replace('"tiny"', '"spot"').replace("max_steps = 60", "max_steps = 300")
    (folder / "spot.toml").write_text(text + "spot = true\n")
    fault(folder, "spot", "--after", "20")
    done = harness(folder, "train", "spot.toml", "--platform", "local")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    assert created(folder, run_id) == {run_id: 1}
    assert "Interrupted" in done.stderr
    log = (folder / ".runs" / run_id / "logs" / "train.log").read_text()
    assert "resuming from checkpoint-" in log
