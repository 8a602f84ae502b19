"""Platform local through the command line: real commands, real signals, a real small model, faults as AWS shows them.

One local SageMaker for all of them, as `harness local up` starts it.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.aws.commands import Commands, interrupted, killed, refused
from tests.chain.conftest import in_train_environment

pytestmark = [pytest.mark.server, pytest.mark.aws, pytest.mark.timeout(1500)]  # not in `make test`


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("commands"))
    in_train_environment("-m", "tests.chain.make_tiny_model", str(made.folder / "tiny"), timeout=600)
    made.write_run_files(made.folder / "tiny")
    assert made("local", "up").returncode == 0
    yield made
    ended = made("local", "down")
    assert ended.returncode == 0, ended.stderr
    assert made.left_over() == []


@pytest.fixture(autouse=True)
def _clean(harness: Commands) -> Iterator[None]:
    """Every test leaves nothing running, and its successor finds no fault of it."""
    yield
    harness("local", "fault", "--clear")
    harness("down", "--all")
    assert harness.there() == []
    assert harness.left_over() == []


def test_a_signal_stops_the_job_with_a_checkpoint_and_the_run_goes_on_from_it(harness: Commands) -> None:
    argument, saved, names = "slow.toml", "", []
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        err = interrupted(harness.started("train", argument, until="loss"), signum, code)
        run_id = argument = harness.newest("slow")
        names.append(run_id if not names else f"{run_id}-r{len(names) + 1}")
        log = (harness.record(run_id) / "logs" / "train.log").read_text()
        if saved:
            assert f"resuming from checkpoint-{saved}\n" in log
        found = re.search(r"error: interrupted; training stands at step (\d+), saved", err)
        assert found, err
        saved = found[1]
        assert f"hint: go on: harness train {run_id}" in err
        assert f"after step {saved}; checkpoint saved" in log, "the log is whole"
        assert harness.there() == []
        assert harness.left_over() == []
        row = harness.shown(run_id)
        assert (row["platform"], row["training"]) == ("local", "Stopped")
    assert harness.created(run_id) == dict.fromkeys(names, 1)


def test_who_reads_a_log_does_not_stop_the_job(harness: Commands) -> None:
    child = harness.started("train", "slow.toml", until="loss")
    run_id = harness.newest("slow")
    log = harness.started("logs", "-f", run_id, until="step=", stream="stdout")
    interrupted(log, signal.SIGINT, 130)
    assert harness.shown(run_id)["training"] == "Training"
    interrupted(child, signal.SIGINT, 130)


@pytest.mark.left_behind(
    "training job", "KILL", "nobody: it goes on; the same command follows it, `harness down` stops it"
)
def test_a_killed_verb_leaves_the_job_which_is_followed_again(harness: Commands) -> None:
    killed(harness.started("train", "slow.toml", until="loss"))
    run_id = harness.newest("slow")
    assert harness.shown(run_id)["training"] == "Training"
    killed(harness.started("train", run_id, until="loss"))
    assert harness.created(run_id) == {run_id: 1}
    down = harness("down", run_id)
    assert (down.returncode, down.stdout) == (0, f"deleted: {run_id}\n"), down.stderr
    assert "stopping, with time for its checkpoint" in down.stderr
    assert harness.shown(run_id)["training"] == "Stopped"
    assert harness("down", run_id).stdout == "nothing to delete\n"


def test_a_run_is_measured_again_by_another_measure(harness: Commands) -> None:
    refusal = harness("evaluate", harness.newest("slow"))
    assert refusal.returncode == 3
    assert "is not trained yet" in refusal.stderr
    done = harness("run", "tiny.toml", "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    run_id = first["run"]
    other = (harness.folder / "tiny.toml").read_text() + '\n[evaluate]\nmeasure = "perplexity"\n'
    (harness.folder / "other.toml").write_text(other)
    done = harness("evaluate", run_id, "--by", "other.toml", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["score"]["measure"], result["score"]["rows"]) == ("perplexity", first["score"]["rows"])
    assert result["score"]["over_base_ci95"][0] > 0, "it has learned its answers"
    assert "nats a token" in result["verdict"]
    assert harness.created(run_id)[run_id] == 1, "nothing was trained"
    assert "nats a token" in (harness.record(run_id) / "report.html").read_text()
    assert harness.shown(run_id)["score"] == result["score"]["tuned"]
    again = harness("evaluate", run_id)
    assert again.returncode == 0, again.stderr
    assert first["score"]["measure"] in again.stdout


def test_a_job_that_nobody_follows_comes_to_its_end_and_its_log_is_whole(harness: Commands) -> None:
    killed(harness.started("run", "tiny.toml", until="Training"))
    run_id = harness.newest("tiny")
    log = harness("logs", "--follow", run_id)
    assert log.returncode == 0, "it ends with the job"
    done = harness("run", run_id, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"]["tuned"] == 1.0
    assert harness.created(run_id)[run_id] == 1
    assert harness.steps(run_id) == list(range(5, 65, 5)), "each line once"
    assert [int(n) for n in re.findall(r"^step=(\d+)/60 loss=", log.stdout, re.MULTILINE)] == list(range(5, 65, 5))
    assert harness.there() == [], "run takes down what it made"

    # The same trained run for what needs an endpoint: expiry, age, everything.
    deployed = harness("deploy", run_id, "--ttl", "60s")  # longer than a busy machine needs for its start
    assert deployed.returncode == 0, deployed.stderr
    based = harness("deploy", run_id, "--base")
    assert based.returncode == 0, based.stderr
    assert harness("down", "--older-than", "1h").stdout == "nothing to delete\n"
    # Its schedule deletes the endpoint at its expiry, as EventBridge Scheduler does; `down` is for what goes with it.
    deadline = time.monotonic() + 300
    while f"endpoints/{run_id}-tuned" in harness.there():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert harness("down", "--expired").returncode == 0
    kinds = ("endpoint-configs", "endpoints", "models")
    assert sorted(harness.there()) == [f"{kind}/{run_id}-base" for kind in kinds]
    assert harness("down", "--expired").stdout == "nothing to delete\n"
    log = harness.started("logs", "-f", "--endpoint", "base", run_id, until="handler ready", stream="stdout")
    old = harness("down", "--older-than", "1s")
    assert old.stdout == f"deleted: {run_id}-base\n", old.stderr
    log.communicate(timeout=600)
    assert log.returncode == 0, "it ends with the endpoint"
    assert harness("down", "--all").stdout == "nothing to delete\n"
    both = harness("down", run_id, "--all")
    assert both.returncode == 3
    assert "give one of RUN, --all, --older-than and --expired" in both.stderr
    objects = harness.folder / ".local" / "s3" / "local" / "runs" / run_id
    assert (objects / "output").is_dir(), "what the run was for stays"
    assert "objects of s3://local/runs/" in harness("down", run_id, "--forget").stderr
    assert list(objects.rglob("*.tar.gz")) == []


def test_term_while_an_endpoint_is_made_deletes_it(harness: Commands) -> None:
    trained = harness("train", "tiny.toml")
    assert trained.returncode == 0, trained.stderr
    run_id = trained.stdout.strip()
    child = harness.started("deploy", run_id, until="Creating")
    while not harness.left_over():  # its container starts
        time.sleep(0.05)
    err = interrupted(child, signal.SIGTERM, 143)
    assert f"go on: harness deploy {run_id}" in err
    assert harness.there() == []


def fault(harness: Commands, *words: str) -> None:
    done = harness("local", "fault", *words)
    assert done.returncode == 0, done.stderr


def test_what_is_refused_before_anything_runs_ends_at_once_and_the_same_run_goes_on(harness: Commands) -> None:
    create = ("--operation", "CreateTrainingJob")
    fault(harness, "expired-token", *create)
    first = harness("train", "tiny.toml")
    refused(first, 10, "the AWS credentials have expired", "aws sso login")
    run_id = harness.newest("tiny")
    fault(harness, "access-denied", *create)
    refused(harness("train", run_id), 10, "create_training_job in us-west-2: access denied", "docs/aws.md")
    fault(harness, "quota")
    refused(harness("train", run_id), 10, "a quota of the account is used up", "Service Quotas")
    assert harness.created(run_id) == {}
    fault(harness, "throttling", *create, "--times", "2")
    fault(harness, "capacity", "--times", "3")
    done = harness("train", run_id)
    refused(done, 5, "CapacityError", 'compute: "ml.trn1.32xlarge", or another region')
    assert done.stderr.count("no capacity in us-west-2; attempt ") == 2
    assert sorted(harness.created(run_id)) == [run_id, f"{run_id}-r2", f"{run_id}-r3"]
    assert harness.there() == []
    fault(harness, "expired-token", "--operation", "DescribeTrainingJob", "--name", f"{run_id}-r4")
    refused(harness("train", run_id), 10, "have expired")
    assert harness.shown(run_id)["training"] == "Failed"
    assert harness("down", run_id).stdout == "nothing to delete\n"


def test_faults_of_a_job_and_of_endpoints(harness: Commands) -> None:
    fault(harness, "disk-full")
    failed = harness("train", "tiny.toml")
    run_id = harness.newest("tiny")
    refused(failed, 5, f"training job {run_id} ended as Failed", "no space left on the disk")
    assert harness.there() == []
    done = harness("train", run_id)
    assert done.returncode == 0, done.stderr
    assert sorted(harness.created(run_id)) == [run_id, f"{run_id}-r2"]
    for words, code, said in (
        (("access-denied", "--operation", "CreateEndpoint"), 10, "create_endpoint in us-west-2: access denied"),
        (("quota",), 10, "a quota of the account is used up"),
        (("capacity",), 6, "another region"),
        (("failing-ping", "--after", "2"), 6, "is Failed"),
    ):
        fault(harness, *words)
        refused(harness("deploy", run_id), code, said)
        assert harness.there() == [], words


@pytest.mark.left_behind(
    "training job", "expired credentials", "nobody: it goes on, and the message says how to follow and stop it"
)
def test_credentials_that_expire_while_a_job_is_followed_name_the_job_that_goes_on(harness: Commands) -> None:
    child = harness.started("train", "slow.toml", until="loss")
    fault(harness, "expired-token", "--operation", "DescribeTrainingJob")
    _, err = child.communicate(timeout=600)
    run_id = harness.newest("slow")
    assert child.returncode == 10, err
    assert "the AWS credentials have expired" in err
    assert f"training job {run_id} goes on in us-west-2" in err
    assert f"follow it: harness train {run_id}; stop it: harness down {run_id}" in err
    assert harness.shown(run_id)["training"] == "Training"
    assert harness("down").stdout == f"deleted: {run_id}\n"


def test_a_spot_instance_is_taken_away_and_the_job_goes_on_from_its_checkpoint(harness: Commands) -> None:
    text = (harness.folder / "tiny.toml").read_text().replace('"tiny"', '"spot"')
    (harness.folder / "spot.toml").write_text(text.replace("max_steps = 60", "max_steps = 300") + "spot = true\n")
    fault(harness, "spot", "--after", "20")
    done = harness("train", "spot.toml")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    assert harness.created(run_id) == {run_id: 1}
    assert "Interrupted" in done.stderr
    log = (harness.record(run_id) / "logs" / "train.log").read_text()
    assert "resuming from checkpoint-" in log
