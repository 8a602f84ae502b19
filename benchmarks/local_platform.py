"""What the local SageMaker costs: a short run by it, against the direct call that it has replaced.

    make setup && .venv/bin/python benchmarks/local_platform.py
    .venv/bin/python benchmarks/local_platform.py --whole           the whole demo instead of 160 rows
    .venv/bin/python benchmarks/local_platform.py --tiny --json     a tiny model: seconds of work, the same steps

Up to commit f45fbf9 the default was a direct call: one process which started the containers itself. Here each run
goes through boto3, a server process that is started for it and stopped after it, uploads to S3, the artifact's
archive unpacked again for the endpoint. Both arms have the same run file (the demo, with 160 training rows or all of
them), seed, machine and environments; that commit is checked out into a directory that is deleted afterwards. Arms
alternate, each call is timed from outside, medians are compared. The trainer's loop and the model's answers stand by
themselves: there the processor's load decides. Beside other work only the difference means something, and that
little.

Then a server's memory: resident when nothing has been asked of it yet, and after a run by it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness import assets  # noqa: E402
from harness.assets import datasets, models  # noqa: E402
from harness.local import control  # noqa: E402
from harness.paths import CACHE, environment, python_of  # noqa: E402

DIRECT_CALL = "f45fbf9"  # the last commit that had it
DEMO = ROOT / "harness" / "runs" / "smollm2-sarcasm.toml"
ROWS = 160
MORE_SECONDS, IDLE_MB = 3.0, 150  # what the local SageMaker may cost at most


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The repository as of `commit`, with this checkout's environments and cache."""
    with tempfile.TemporaryDirectory(prefix="direct-call-") as scratch:
        folder = Path(scratch) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(folder), commit], check=True)
        try:
            for path in (*(environment(role) for role in ("harness", "train", "serve")), CACHE):
                (folder / path.name).symlink_to(path)
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def demo(folder: Path, rows: int | None) -> Path:
    """The demo's run file, with `rows` training rows or its own; model and data are fetched before."""
    models.directory(assets.MODELS["smollm2-135m-instruct"], CACHE, print)
    datasets.examples(assets.DATA_SETS["sarcasm"], CACHE, print)
    text = DEMO.read_text(encoding="utf-8")
    text, measures = re.subn(r"\[evaluate\]\n.*?\n\n", "", text, flags=re.DOTALL)  # that commit has one measure
    assert measures == 1, "the demo's [evaluate]"
    if rows:
        text, changed = re.subn(r"train = \d+", f"train = {rows}", text)
        assert changed == 1, "the demo's [data] examples"
    path = folder / "demo.toml"
    path.write_text(text, encoding="utf-8")
    return path


def tiny_demo(folder: Path) -> Path:
    """The tests' tiny model and its task."""
    from tests.chain.conftest import in_train_environment, write_tiny_run

    in_train_environment("-m", "tests.chain.make_tiny_model", str(folder / "model-files"))
    return write_tiny_run(folder / "model-files", folder)


def run(product: Path, run_file: Path, folder: Path) -> dict[str, float]:
    """Seconds of one call by step; `rest` is what is in no step: imports, checks, the server's start and end."""
    kept = {k: v for k, v in os.environ.items() if k not in ("EXECUTOR", "HARNESS_RUNS_DIR", "NEURON_HARNESS_HOME")}
    began = time.monotonic()
    done = subprocess.run(
        [python_of("harness"), "-m", "harness", "run", str(run_file), "--json"],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(product), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    call = time.monotonic() - began
    if done.returncode:
        sys.exit(f"exit code {done.returncode} in {product}:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout)
    steps: dict[str, float] = result["seconds"]
    steps.pop("total")
    steps["rest"] = call - sum(steps.values())
    loop = result["training"]["seconds"]
    model = loop + steps["evaluate_base"] + steps["evaluate_tuned"]
    around = {"trainer's loop": loop, "train, around it": steps.pop("train") - loop}
    return {**around, **steps, "the whole call": call, "without the model": call - model}


def memory(run_file: Path, folder: Path) -> dict[str, float]:
    """A server's resident MB: as started, and idle again after a run."""
    server, _ = control.up(folder / ".local", None, "us-west-2", "process")
    try:
        process = psutil.Process(server.pid)
        found = {"as started": process.memory_info().rss / 1e6}
        run(ROOT, run_file, folder)
        found["idle after a run"] = process.memory_info().rss / 1e6
    finally:
        control.down(folder / ".local")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="a tiny model instead of the demo's")
    size.add_argument("--whole", action="store_true", help="every row of the demo")
    parser.add_argument("--json", action="store_true", help="print figures and ratios for a script")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="local-platform-") as scratch, checkout(DIRECT_CALL) as before:
        folder = Path(scratch)
        run_file = tiny_demo(folder) if args.tiny else demo(folder, None if args.whole else ROWS)
        arms = {"direct": before, "local": ROOT}
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for number in range(args.rounds):
            for arm in list(arms) if number % 2 == 0 else reversed(arms):
                folder = Path(scratch, f"{arm}-{number}")
                folder.mkdir()
                load = os.getloadavg()[0]
                found[arm].append(run(arms[arm], run_file, folder))
                shutil.rmtree(folder)
                print(f"{arm}: {found[arm][-1]['the whole call']:.1f} s (load {load:.1f})", file=sys.stderr)
        resident = memory(run_file, Path(scratch))
    rows = {arm: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for arm, runs in found.items()}
    more = rows["local"]["without the model"] - rows["direct"]["without the model"]
    if args.json:
        ratios = {k: rows["local"][k] / v for k, v in rows["direct"].items() if v > 0}
        print(json.dumps({"seconds": rows, "ratios": ratios, "more_seconds": more, "server_mb": resident}, indent=2))
        return 0
    print(f"{'seconds, medians':<18}{'direct':>9}{'local':>9}{'more':>9}")
    for name in rows["direct"]:
        here, there = rows["direct"][name], rows["local"][name]
        print(f"{name:<18}{here:>9.1f}{there:>9.1f}{there - here:>+9.1f}")
    print(f"wanted: at most {MORE_SECONDS:+.1f} without the model, which is {more:+.1f}")
    for name, value in resident.items():
        print(f"server's memory {name}: {value:.0f} MB (wanted: under {IDLE_MB})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
