"""Platform ec2 through the command line, with processes in place of its containers: what detaches, what stops.

Executor neuron needs an engine and Neuron devices (tests/aws/test_ec2.py and tests/images have its parts): here the
host is taken as it is and its executor is `process`. Signals, the server and the objects in S3 are those of ec2. S3
is moto's, where an AWS profile is written.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.aws.session import Aws
from harness.spec.profile import Profile
from tests.aws.commands import PYTHON, Commands, interrupted, killed
from tests.chain.conftest import in_train_environment

pytestmark = [pytest.mark.server, pytest.mark.aws, pytest.mark.timeout(1500)]
# The command line on a host whose checks are not asked and whose executor needs neither engine nor devices.
DRIVER = """
from harness.run import host_checks
host_checks.EXECUTOR, host_checks.check = "process", lambda client, run, plan: None
from harness.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    in_train_environment("-m", "tests.chain.make_tiny_model", str(folder), timeout=600)
    return folder


@pytest.fixture
def ec2(model: Path, tmp_path: Path) -> Iterator[Commands]:
    """A directory of runs on such a host; whatever a test leaves is ended, and the server with it."""
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    made = Commands(tmp_path / "host", (PYTHON, "-c", DRIVER), environment, ".local-ec2")
    made.folder.mkdir()
    made.write_run_files(model)
    yield made
    ended = made("down", "--all")
    assert ended.returncode == 0, ended.stderr
    assert made.there() == []
    assert made.left_over() == []
    assert not made.is_up()


def test_signals_detach_and_a_second_ctrl_c_stops_with_a_checkpoint(ec2: Commands) -> None:
    argument = "slow.toml"
    for signum, code, times in ((signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2), (signal.SIGHUP, 129, 2)):
        child = ec2.started(
            "train", argument, *(("--platform", "ec2") if argument == "slow.toml" else ()), until="loss"
        )
        err = interrupted(child, signum, code, times)
        run_id = argument = ec2.newest("slow")
        assert ("detaching; Ctrl-C again within 5 s stops the job" in err) == (signum == signal.SIGINT)
        assert f"error: detached; training job {run_id} goes on" in err
        assert "billed" not in err
        assert f"hint: follow it: harness train {run_id}; stop it: harness down {run_id}" in err
        assert ec2.is_up()
        assert ec2.left_over() != []
        row = ec2.shown(run_id)
        assert (row["platform"], row["training"]) == ("ec2", "Training")

    again = ec2.started("train", run_id, until="loss")
    assert ec2.created(run_id) == {run_id: 1}, "it was the job that survived"
    again.send_signal(signal.SIGINT)
    said = ""
    assert again.stderr is not None
    while "Ctrl-C again" not in said:
        line = again.stderr.readline()
        assert line, said
        said += line
    err = interrupted(again, signal.SIGINT, 130, times=1)
    found = re.search(r"error: interrupted; training stands at step (\d+), saved", err)
    assert found, err
    assert f"hint: go on: harness train {run_id}" in err
    assert ec2.left_over() == []
    assert not ec2.is_up(), "nothing needs it any more"
    assert ec2.shown(run_id)["training"] == "Stopped"
    killed(ec2.started("train", run_id, until="loss"))
    assert f"resuming from checkpoint-{found[1]}\n" in (ec2.record(run_id) / "logs" / "train.log").read_text()
    down = ec2("down", run_id)
    assert down.stdout == f"deleted: {run_id}-r2\n", down.stderr
    assert not ec2.is_up()


def test_ctrl_c_while_an_endpoint_is_made_deletes_it(ec2: Commands) -> None:
    trained = ec2("train", "tiny.toml", "--platform", "ec2")
    assert trained.returncode == 0, trained.stderr
    child = ec2.started("deploy", trained.stdout.strip(), until="Creating")
    err = interrupted(child, signal.SIGINT, 130, times=1)
    assert "interrupted; the model is trained" in err
    assert ec2.there() == []
    assert not ec2.is_up()


def test_with_a_profile_a_run_reads_and_writes_s3(
    ec2: Commands, profile: Profile, aws: Aws, moto_url: str, tmp_path: Path
) -> None:
    """As `harness init` writes it; the credentials are those of boto3's standard chain."""
    config = tmp_path / "config" / "neuron-harness" / "profile.toml"
    config.parent.mkdir(parents=True)
    keys = ("account", "region", "role_arn", "bucket")
    config.write_text("".join(f"{key} = {json.dumps(getattr(profile, key))}\n" for key in keys))
    credentials = {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "ENDPOINT_URL": moto_url}
    host = Commands(
        ec2.folder,
        ec2.words,
        {**ec2.environment, **{f"AWS_{name}": value for name, value in credentials.items()}},
        ec2.state,
    )

    def keys_of(run_id: str) -> list[str]:
        found = aws.pages("s3", "list_objects_v2", "Contents", Bucket=profile.bucket, Prefix=f"runs/{run_id}/")
        return [item["Key"].removeprefix(f"runs/{run_id}/") for item in found]

    killed(host.started("train", "slow.toml", "--platform", "ec2", until="loss"))
    slow = host.newest("slow")
    assert "channels/train/train.jsonl" in keys_of(slow)
    assert host("down", slow).stdout == f"deleted: {slow}\n"
    assert any(re.match(r"checkpoints/checkpoint-\d+/", key) for key in keys_of(slow)), "saved in S3"

    done = host("run", "tiny.toml", "--platform", "ec2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"]["tuned"] == 1.0
    run_id = host.newest("tiny")
    assert {f"output/{run_id}/output/{name}.tar.gz" for name in ("model", "output")} <= set(keys_of(run_id))
    assert not host.is_up()
