"""Which families the real NeuronTrainer trains: `python -m tests.families.training [FAMILY …]`.

Each family for a few steps on XLA:CPU through our run_clm, beside transformers' own Trainer on the processor: losses,
norms of the gradient, and a compile count that stands still. Writes tests/families/training.json; takes ten minutes
for all. What the Neuron compiler says to the graphs is not in it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.families.models import FAMILIES
from tests.neuron.test_neuron import ROOT, Forge, Run, arguments, python, read

RECORDED = Path(__file__).resolve().parent / "training.json"
STEPS = 5
GIVEN = {"max_steps": STEPS, "gradient_accumulation_steps": 1, "warmup_steps": 0}
ALLOWED = {"loss": 1e-3, "grad_norm": 1e-2}
WRITE = """
import sys
from pathlib import Path
from tests.families import models
for family in sys.argv[2:]:
    models.write(family, Path(sys.argv[1]) / family)
"""


def rows_of(folder: Path) -> None:
    for name, count in (("train", 64), ("validation", 8)):
        rows = [("red", "Yes") if i % 2 else ("blue", "No") for i in range(count)]
        lines = [json.dumps({"prompt": f"{name[0]}{i} {w}: warm?", "completion": a}) for i, (w, a) in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def judged(ours: Run, reference: Run) -> dict[str, Any]:
    """Whether the two runs are one, and what was first where they are not."""
    result: dict[str, Any] = {"trains": False, "why": "", "loss apart": None, "grad_norm apart": None}
    for who, run in (("transformers", reference), ("device neuron", ours)):
        if run.code != 0:
            lines = [line for line in run.output.splitlines() if line.strip()]
            found = [x for x in lines if "Error" in x and not x.startswith(("Traceback", " "))]
            last = (found or lines)[-1].split("] ")[-1]
            result["why"] = f"{who}: {last}"[:200]
            return result
    for name, most in ALLOWED.items():
        a, b = reference.of(name), ours.of(name)
        if sorted(a) != sorted(b) or len(a) != STEPS:
            result["why"] = f"{name} was logged at {sorted(a)} and {sorted(b)}"
            return result
        result[f"{name} apart"] = apart = round(max(abs(a[s] - b[s]) for s in a), 6)
        if apart > most:
            result["why"] = f"{name} apart by {apart}"
            return result
    steps = {step: count for event, step, count in ours.counts if event == "step"}
    if len({count for step, count in steps.items() if step >= 3}) != 1:
        result["why"] = f"graphs are compiled in later steps, too: {steps}"
        return result
    result["trains"] = True
    return result


def record(names: list[str]) -> dict[str, Any]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="families-") as name:
        work = Path(name)
        rows_of(work)
        done = python("-c", WRITE, str(work / "models"), *names, USE_TORCH_XLA="0", PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stdout[-3000:]
        forge = Forge(work)
        more = {family: {**GIVEN, "model_name_or_path": work / "models" / family} for family in names}
        for family in names:
            forge.submit(family, "none", more[family])
        for family in names:
            words = arguments(work, work / "cpu" / family, "cpu", use_cpu="true", **more[family])
            plain = python("-m", "tests.families.plain", *words, USE_TORCH_XLA="0")
            reference = read(plain.returncode, plain.stdout, work / "cpu" / family)
            found[family] = judged(forge.result(family), reference)
            print(family, json.dumps(found[family]), flush=True)
        forge.close()
    return found


def main(names: list[str]) -> None:
    before = json.loads(RECORDED.read_text())["families"] if RECORDED.exists() and names else {}
    found = {**before, **record(names or list(FAMILIES))}
    said = {"families": {name: found[name] for name in FAMILIES if name in found}}
    RECORDED.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
