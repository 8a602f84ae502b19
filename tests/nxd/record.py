"""Record what the trainer does on two cores a model: `NXD_SOURCE=CHECKOUT python -m tests.nxd.record [CASE …]`.

By the harness's Python; the runs are in .venv-neuron. Our run_clm, the real NeuronTrainer and the real
neuronx-distributed on two processes of XLA:CPU (tests/nxd/cores.py), beside transformers' own Trainer in one process:
losses, the evaluation's loss, the artifact's weights. Writes tests/nxd/table.json with the commit of the source and a
digest of every module of ours that took part; tests/nxd/test_table.py is red when one of them has changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.families.training import rows_of
from tests.neuron.test_neuron import PYTHON, ROOT, arguments, environment, python, read
from tests.tnx.record_table import commit_of

TABLE = Path(__file__).resolve().parent / "table.json"
STEPS = 5
GIVEN = {"max_steps": STEPS, "gradient_accumulation_steps": 1, "warmup_steps": 2}
TP = {"tensor_parallel_size": 2}
SAVES = {"save_strategy": "steps", "save_steps": 3}
# name -> family, what is taken out of ours again, arguments. Cases that begin with "without" show what upstream alone
# does, and so why ours is there.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama, TP 2": ("llama", "none", {**TP, **SAVES}),
    "llama, TP 2, resumed after step 3": ("llama", "none", {**TP, **SAVES, "resumed": "llama, TP 2"}),
    "llama, TP 2, sequence parallelism off": ("llama", "none", {**TP, "disable_sequence_parallel": "true"}),
    "mistral, TP 2": ("mistral", "none", TP),
    "gpt_neox, TP 2": ("gpt_neox", "none", TP),
    "gpt_neo, TP 2": ("gpt_neo", "none", TP),
    "llama, TP 2, pytorch_model.bin": ("llama.bin", "none", TP),
    "llama, PP 2": ("llama", "none", {"pipeline_parallel_size": 2}),
    "llama, ZeRO-1 on two workers": ("llama", "none", {"zero_1": "true", "per_device_train_batch_size": 2}),
    "without let_schedule_reach": ("llama", "let_schedule_reach", TP),
    "without mark_norms": ("llama", "mark_norms", TP),
    "without make_directories": ("llama", "make_directories", TP),
    "without masked_cross_entropy": ("llama", "masked_cross_entropy", TP),
}
# The loss is logged with four decimals; an evaluation's is not rounded.
MOST = {"loss": 2e-4, "eval_loss": 2e-4}
WRITE = """
import sys
from pathlib import Path
from tests.families import models
for name in sys.argv[2:]:
    family, _, pickled = name.partition(".")
    models.write(family, Path(sys.argv[1]) / name, multiple=8)
    if pickled:
        from transformers import AutoModelForCausalLM
        folder = Path(sys.argv[1]) / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder, safe_serialization=False)
"""


def words_of(work: Path, name: str) -> list[str]:
    family, _, more = CASES[name]
    given = {k: v for k, v in more.items() if k != "resumed"}
    model = {"model_name_or_path": fresh(work / "models" / family, work / name)}
    return arguments(work, work / name, "neuron", **{**GIVEN, **model, **given})


def fresh(model: Path, folder: Path) -> Path:
    """A copy of a model that is converted in its place, for each job its own."""
    if not model.name.endswith(".bin"):
        return model
    return Path(shutil.copytree(model, folder / "given"))


def reference(work: Path, family: str) -> dict[str, Any]:
    folder = work / f"reference {family}"
    words = arguments(
        work, folder, "cpu", use_cpu="true", **{**GIVEN, "model_name_or_path": work / "models" / family}
    )
    done = python("-m", "tests.families.plain", *words, USE_TORCH_XLA="0")
    run = read(done.returncode, done.stdout, folder).good()
    return {"loss": run.of("loss"), "eval_loss": run.of("eval_loss"), "model": folder / "model"}


def judged(work: Path, name: str, codes: list[int], expected: dict[str, Any]) -> dict[str, Any]:
    folder = work / name
    output = (folder / "output.0.txt").read_text() + (folder / "output.1.txt").read_text()
    result: dict[str, Any] = {"equal": False, "codes": codes}
    if any(codes):
        found = [line.strip() for line in output.splitlines() if "Error" in line and not line.startswith(" ")]
        result["error"] = (found or ["no output"])[-1].replace(str(work), "")[:300]
        return result
    run = read(0, output, folder)
    for key, most in MOST.items():
        ours, theirs = run.of(key), expected[key]
        shared = sorted(set(ours) & set(theirs))
        assert shared, f"{name}: {key} was logged at {sorted(ours)} and {sorted(theirs)}"
        result[f"{key} apart"] = round(max(abs(ours[s] - theirs[s]) for s in shared), 6)
        result["steps"] = shared if key == "loss" else result["steps"]
        result.setdefault("over", []).extend([key] if result[f"{key} apart"] > most else [])
    drift = [line for line in output.splitlines() if "copies differ by" in line]
    result["copies that drifted"] = len(drift)
    folders = (folder / "model", expected["model"], expected["model"])
    done = python("-m", "tests.neuron.compare", *map(str, folders))
    assert done.returncode == 0, done.stdout[-2000:]
    result["weights apart"] = float(f"{json.loads(done.stdout.splitlines()[-1])[0]:.2g}")
    result["equal"] = not result.pop("over") and not drift and result["weights apart"] < 0.02
    return result


def run(work: Path, names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    families = sorted({CASES[name][0] for name in names})
    done = python("-c", WRITE, str(work / "models"), *families, "llama", USE_TORCH_XLA="0", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:]
    expected = {family: reference(work, family) for family in families}
    return run_cases(work, names, expected)


def run_cases(work: Path, names: list[str], expected: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    jobs = []
    for name in names:
        resumed = CASES[name][2].get("resumed")
        (work / name).mkdir()
        jobs.append(
            {
                "name": name,
                "folder": str(work / name),
                "without": CASES[name][1],
                "words": words_of(work, name),
                "checkpoint": str(work / str(resumed) / "checkpoints" / "checkpoint-3") if resumed else "",
            }
        )
    path = f"{ROOT / 'tests' / 'neuron' / 'shim'}:{ROOT}"
    env = environment(PYTHONPATH=path, PJRT_DEVICE="CPU", NEURON_COMPILE_CACHE_URL=str(work / "cache"))
    env["NXD_SOURCE"] = os.environ["NXD_SOURCE"]
    child = subprocess.Popen(
        [PYTHON, "-m", "tests.nxd.cases"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(work / "stderr.txt").open("w"),
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n".join(map(json.dumps, jobs)) + "\n")
    child.stdin.close()
    found, modules = {}, dict[str, str]()
    for line in child.stdout:
        ended = json.loads(line)
        name = ended["name"]
        found[name] = judged(work, name, ended["codes"], expected[CASES[name][0]])
        modules |= {path: digest(path) for path in ended["modules"]}
        print(name, json.dumps(found[name]), flush=True)
    assert child.wait() == 0, (work / "stderr.txt").read_text()[-3000:]
    return found, dict(sorted(modules.items()))


def digest(path: str) -> str:
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def main(names: list[str]) -> None:
    source = Path(os.environ["NXD_SOURCE"])
    with tempfile.TemporaryDirectory(prefix="nxd-") as folder:
        work = Path(folder)
        rows_of(work)
        found, modules = run(work, names or list(CASES))
    old = json.loads(TABLE.read_text())["cases"] if TABLE.exists() else {}
    # What the trainer refuses by now keeps what upstream did when it was let through: the reason of the refusal.
    refused = {name for name, case in found.items() if case.get("error", "").startswith("SignatureError")}
    cases = {**old, **{name: case for name, case in found.items() if name not in refused or name not in old}}
    said = {
        "source": {
            "repository": "https://github.com/aws-neuron/neuronx-distributed",
            "commit": commit_of(source) or os.environ["NXD_COMMIT"],
            "relation to the image": (
                "the merge of release 2.20, whose version is 0.9.0; the training image of stack sdk2.20 installs "
                "neuronx_distributed 0.9.0 from AWS's package index"
            ),
        },
        "ours": modules,
        "cases": {name: cases[name] for name in CASES if name in cases},
    }
    TABLE.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
