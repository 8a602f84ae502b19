"""Platform local through the command line: real commands, real signals, a real small model, faults as AWS shows them.

One local SageMaker for all of them, as `harness local up` starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chain.conftest import ROOT, in_train_environment, write_tiny_run
from tests.chain.test_chain import left_over

pytestmark = pytest.mark.server
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
