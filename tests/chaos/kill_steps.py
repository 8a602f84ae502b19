"""The harness killed between every two steps of `run` on this machine.

    python -m tests.chaos.kill_steps [FIRST [LAST [STRIDE]]]

A step is a call that changes something in the account: an upload, a create, a stop, a delete. For each, `run` on a
tiny model is killed (SIGKILL) just before and just after it. Then follows either `down`, after which nothing of the
run may be left, or the same run again, which must end well and train nothing twice; the two alternate.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chain.conftest import ROOT, in_train_environment, write_tiny_run
from tests.emulator.left_over import containers

CHANGING = ("put_", "create_", "stop_", "delete_", "upload_", "complete_", "abort_", "copy")
PYTHON = str(ROOT / ".venv" / "bin" / "python")
# Runs the command line with a counter in Aws.call; at the moment asked for, the process kills itself.
DRIVER = f"""
import os, signal, sys
from harness.aws.session import Aws
from harness.cli import main
at, after, seen, real = int(sys.argv.pop(1)), sys.argv.pop(1) == "after", [0], Aws.call
def call(self, service, operation, region="", **request):
    changing = operation.startswith({CHANGING!r})
    seen[0] += changing
    if changing:
        with open("calls", "a") as log:
            log.write(f"{{seen[0]}} {{operation}}\\n")
    if changing and seen[0] == at and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = real(self, service, operation, region, **request)
    if changing and seen[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
Aws.call = call
main.main()
"""


class Broken(AssertionError):
    """A moment did not end as it must."""


def harness(folder: Path, *words: str, at: int = 0, after: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-c", DRIVER, str(at), "after" if after else "before", *words],
        cwd=folder,
        env={**os.environ, "HARNESS_RUNS_DIR": str(folder / ".runs"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def ledger(folder: Path) -> list[dict[str, Any]]:
    lines = next((folder / ".runs").glob("tiny-*")).joinpath("ledger.jsonl")
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def resources(folder: Path) -> list[str]:
    """What the local SageMaker's own state directory has of endpoints, configurations, models and running jobs."""
    found = []
    for kind in ("endpoints", "endpoint-configs", "models", "training-jobs"):
        for path in (folder / ".local" / "sagemaker" / kind).rglob("*.json"):
            text = path.read_text()
            if kind != "training-jobs" or '"InProgress"' in text:
                found.append(f"{kind}/{path.stem}")
    return found


def check_down(folder: Path, run_id: str) -> None:
    done = harness(folder, "down", run_id)
    if done.returncode or "Traceback" in done.stderr:
        raise Broken(f"down: {done.returncode}\n{done.stderr[-1500:]}")
    if found := left(folder):
        raise Broken(f"after down there is {found}")
    if harness(folder, "down", run_id).stdout.strip() != "nothing to delete":
        raise Broken("a second down found something")


def left(folder: Path) -> list[str]:
    """Resources, containers, and a local SageMaker that a command has started and none has stopped."""
    server = ["server"] if (folder / ".local" / "server.json").exists() else []
    return resources(folder) + containers(folder / ".local") + server


def check_again(folder: Path, run_id: str) -> None:
    done = harness(folder, "run", run_id, "--json")
    if done.returncode or "Traceback" in done.stderr:
        raise Broken(f"run again: {done.returncode}\n{done.stderr[-1500:]}")
    if json.loads(done.stdout)["score"]["tuned"] < 0.9:
        raise Broken("what came out is worse")
    jobs = Counter(
        line["name"] for line in ledger(folder) if line["event"] == "created" and line["kind"] == "training-job"
    )
    if list(jobs) != [run_id] or jobs[run_id] > 2:  # created, and adopted after a kill between call and note
        raise Broken(f"training was done again: {jobs}")
    if found := left(folder):
        raise Broken(f"after the run there is {found}")


def moment(number: int, after: bool, then_down: bool, model: Path) -> str:
    folder = Path(tempfile.mkdtemp(prefix="steps-"))
    try:
        write_tiny_run(model, folder)
        died = harness(folder, "run", "tiny.toml", at=number, after=after)
        if died.returncode == 0:
            return "over"
        if died.returncode != -signal.SIGKILL:
            raise Broken(f"it ended with {died.returncode}\n{died.stderr[-1500:]}")
        operation = (folder / "calls").read_text().split()[-1]
        run_id = next((folder / ".runs").glob("tiny-*")).name
        (check_down if then_down else check_again)(folder, run_id)
        return operation
    finally:
        subprocess.run(
            [str(ROOT / ".venv" / "bin" / "harness"), "local", "down"], cwd=folder, capture_output=True, check=False
        )
        shutil.rmtree(folder, ignore_errors=True)


def main(words: list[str]) -> int:
    first, last, stride = ([*map(int, words), *(1, 99, 1)[len(words) :]])[:3]
    scratch = Path(tempfile.mkdtemp(prefix="steps-model-"))
    model = scratch / "model"
    in_train_environment("-m", "tests.chain.make_tiny_model", str(model), timeout=600)
    broken = count = 0
    try:
        for number in range(first, last + 1, stride):
            for after, then_down in ((False, number % 2 == 0), (True, number % 2 == 1)):
                begin = time.monotonic()
                name = f"{number} {'after' if after else 'before'}, then {'down' if then_down else 'run again'}"
                try:
                    operation = moment(number, after, then_down, model)
                    if operation == "over":
                        print(f"{number}: the run has ended by then")
                        return 1 if broken else 0
                    verdict = "clean"
                except (Broken, subprocess.TimeoutExpired) as error:
                    broken, operation, verdict = broken + 1, "", f"BROKEN: {error}"
                count += 1
                print(f"{name} ({operation}): {verdict} ({time.monotonic() - begin:.0f} s)", flush=True)
    finally:
        shutil.rmtree(scratch)
        print(f"{count - broken} of {count} moments clean", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
