"""Kill matrix: verb x moment x signal. Each cell must end clean and go on afterwards. `make kill-matrix`

    python -m tests.kill_matrix [WORDS]      only the cells whose name contains one of the words

A cell starts a verb on a tiny model, waits for a line of its output, sends the signal, and then asks: the right exit
code, no traceback, no process of a container or server, no half-written file, records that parse; and the same
command again succeeds. KILL ends the harness alone: the local SageMaker and what it runs go on. The same command then
follows that, and trains nothing a second time; after `deploy` it is `down` that has to find it.
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
from dataclasses import dataclass
from pathlib import Path

from tests.chain.conftest import ROOT, in_train_environment, write_tiny_run
from tests.chain.test_chain import left_over

HARNESS = str(ROOT / ".venv" / "bin" / "harness")
INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


@dataclass(frozen=True)
class Cell:
    """`state` is what the run has behind it: nothing, trained, or an endpoint. `until` is a line of the output."""

    verb: str
    until: str
    signum: signal.Signals
    state: str = "nothing"
    delay: float = 0.0

    @property
    def name(self) -> str:
        moment = self.until.strip() or "start"
        return f"{self.verb} | {moment}{f' +{self.delay:g} s' if self.delay else ''} | {self.signum.name}"


RUN_MOMENTS = ("run tiny", "Downloading", "Training:", "loss", "Uploading", "base: Creating", "base: InService")
RUN_MOMENTS += ("asking the base", "tuned: Creating", "tuned: InService")
CELLS = [Cell("run", moment, signum) for moment in RUN_MOMENTS for signum in (INT, KILL)]
CELLS += [Cell("run", moment, TERM) for moment in ("Training:", "loss", "Uploading", "tuned: Creating")]
CELLS += [Cell("train", "loss", TERM), Cell("train", "Training:", INT, delay=2.0)]
CELLS += [Cell("deploy", "Creating", s, "trained", d) for s in (INT, TERM, KILL) for d in (0.0, 2.0)]
CELLS += [Cell("down", "", s, "endpoint", d) for s in (INT, TERM, KILL) for d in (0.5,)]
CELLS += [Cell("invoke", "", s, "endpoint", 0.6) for s in (INT, KILL)]
CELLS += [Cell("logs", "", INT, "endpoint", 1.0), Cell("plan", "", INT, "nothing", 0.2)]


class Broken(AssertionError):
    """A cell did not end as it must."""


def words_of(cell: Cell, run_id: str) -> list[str]:
    """The command of a cell; a run that exists is named."""
    return {
        "run": ["run", run_id or "tiny.toml"],
        "train": ["train", run_id or "tiny.toml"],
        "deploy": ["deploy"],
        "down": ["down"],
        "invoke": ["invoke", "x red: warm?", "--max-new-tokens", "40", "--stream"],
        "logs": ["logs", "-f", "--endpoint", "tuned"],
        "plan": ["plan", "tiny.toml"],
    }[cell.verb]


def harness(folder: Path, *words: str, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [HARNESS, *words], cwd=folder, env=env_of(folder), capture_output=True, text=True, timeout=400, check=False
    )
    if done.returncode not in codes or "Traceback" in done.stderr:
        raise Broken(f"harness {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-1500:]}")
    return done.stdout


def env_of(folder: Path) -> dict[str, str]:
    return {**os.environ, "HARNESS_RUNS_DIR": str(folder / ".runs")}


def interrupt(folder: Path, cell: Cell) -> None:
    """Start the verb, send the signal at the moment, check how it ends."""
    with (folder / "stderr").open("w+") as err:
        child = subprocess.Popen(
            [HARNESS, *words_of(cell, "")],
            cwd=folder,
            env=env_of(folder),
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
        )
        end = time.monotonic() + 300
        while cell.until not in (folder / "stderr").read_text():
            if child.poll() is not None or time.monotonic() > end:
                raise Broken(f"it never said {cell.until!r}:\n{(folder / 'stderr').read_text()[-800:]}")
            time.sleep(0.02)
        time.sleep(cell.delay)
        child.send_signal(cell.signum)
        if cell.signum != KILL:
            time.sleep(0.1)
            child.send_signal(cell.signum)  # a second one must change nothing
        code = child.wait(timeout=300)
    said = (folder / "stderr").read_text()
    wanted = -KILL if cell.signum == KILL else 128 + cell.signum
    # What was over before the signal came is over: exit code 0.
    if code not in ((wanted, 0) if cell.verb in ("plan", "down", "invoke", "logs") else (wanted,)):
        raise Broken(f"exit code {code} instead of {wanted}:\n{said[-1500:]}")
    if "Traceback" in said:
        raise Broken(f"a traceback:\n{said[-2500:]}")


def check_clean(folder: Path, may_live: bool) -> None:
    """No process, no half-written file, records that parse; `may_live`: the server and what it runs is wanted."""
    alive = left_over(folder)
    if alive and not may_live:
        raise Broken(f"{len(alive)} processes left, first: {alive[0]}")
    partial = [str(p.relative_to(folder)) for p in (folder / ".runs").rglob("*") if ".partial" in p.name]
    if partial and not may_live:
        raise Broken(f"half-written: {partial[:3]}")
    for path in (folder / ".runs").glob("*/*.json"):
        json.loads(path.read_text())


def made(folder: Path) -> list[str]:
    """The names of the training jobs that the run has made."""
    (file,) = (folder / ".runs").glob("tiny-*/ledger.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    names = (line["name"] for line in lines if line["event"] == "create" and line["kind"] == "training-job")
    return list(dict.fromkeys(names))


def run_cell(cell: Cell, model: Path, trained: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="matrix-"))
    try:
        if cell.state == "nothing":
            write_tiny_run(model, folder, steps=120)
        else:
            shutil.rmtree(folder)
            shutil.copytree(trained, folder, symlinks=True)
        if cell.state == "endpoint":
            harness(folder, "deploy")
        interrupt(folder, cell)
        runs = [p.name for p in (folder / ".runs").glob("tiny-*")]
        stays = cell.verb in ("invoke", "logs", "down")  # an interrupted `down` may not have begun
        follows = cell.signum == KILL and cell.verb in ("run", "train")
        if cell.signum == KILL and cell.verb == "deploy":
            harness(folder, "down", runs[0])
        check_clean(folder, stays or follows)
        again = words_of(cell, runs[0] if runs else "")
        if cell.verb == "logs":
            again = ["logs", "--endpoint", "tuned"]
        harness(folder, *again)
        if cell.verb == "run":
            result = json.loads(next((folder / ".runs").glob("*/result.json")).read_text())
            if result["score"]["tuned"] < 0.9:
                raise Broken(f"what came out is worse: {result['score']}")
        if follows and (jobs := made(folder)) != runs[:1]:
            raise Broken(f"it was trained again: {jobs}")
        if runs or (folder / ".runs").is_dir():
            harness(folder, "down", codes=(0, 8))
        check_clean(folder, False)
    except (Broken, subprocess.TimeoutExpired):
        for line in left_over(folder):
            sys.stderr.write(f"left: {line}\n")
        raise
    finally:
        subprocess.run([HARNESS, "local", "down"], cwd=folder, env=env_of(folder), capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def main(words: list[str]) -> int:
    scratch = Path(tempfile.mkdtemp(prefix="matrix-model-"))
    model, trained = scratch / "model", scratch / "trained"
    in_train_environment("-m", "tests.chain.make_tiny_model", str(model))
    trained.mkdir()
    write_tiny_run(model, trained, steps=60)
    harness(trained, "train", "tiny.toml")
    cells = [c for c in CELLS if not words or any(w in c.name for w in words)]
    broken = 0
    for number, cell in enumerate(cells, start=1):
        begin = time.monotonic()
        try:
            run_cell(cell, model, trained)
            verdict = "clean, goes on"
        except (Broken, subprocess.TimeoutExpired) as error:
            broken += 1
            verdict = f"BROKEN: {error}"
        print(f"{number:2}/{len(cells)} {cell.name}: {verdict} ({time.monotonic() - begin:.0f} s)", flush=True)
    shutil.rmtree(scratch)
    print(f"{len(cells) - broken} of {len(cells)} cells end clean and go on")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
