"""containers/families.json, put together from what the real packages were recorded to do.

tests/families/training.json: the real NeuronTrainer on one core. tests/nxd/table.json: on two cores a model.
tests/tnx/families.json: the real host code of transformers-neuronx. What none of them tried does not run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from containers.families import BATCHING, LORA, PIPELINE, SERVE, TENSOR, TRAIN
from tests.families.models import FAMILIES

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINING = json.loads((ROOT / "tests/families/training.json").read_text(encoding="utf-8"))["families"]
CORES = json.loads((ROOT / "tests/nxd/table.json").read_text(encoding="utf-8"))["cases"]
SERVING = json.loads((ROOT / "tests/tnx/families.json").read_text(encoding="utf-8"))["families"]

ON_XLA = "tests/families/training.json: 5 steps on XLA:CPU, losses and gradients are transformers'"
ON_CORES = "tests/nxd/table.json: 5 steps on two cores, losses and weights are transformers'"
ON_HOST = "tests/tnx/families.json: 14 of 14 answers are transformers', on the stand-in device"
# What a refusal of the library means; the words are for the user of a run file.
REASONS = {
    "is not supported by Neuron": "transformers-neuronx 0.12 does not know the family",
    "doesn't support dynamic batching": "transformers-neuronx 0.12 has no prompt graph of one slot for it",
    "context_length_estimate": "transformers-neuronx 0.12 has it in an older form, without prompt graphs",
    "was sent": "transformers-neuronx 0.12 copies each prompt of it into every slot",
    "KeyError": "the serving image's transformers 4.45.2 does not know the family",
}


# Recorded as trained, with tiny batches whose experts were always the same; in general their shapes change.
BY_DATA = {
    "mixtral": "which expert a token goes to decides the shapes (transformers 4.48.1, modeling_mixtral.py): new "
    "graphs are compiled in every step"
}


def cell(ok: bool, why: str) -> dict[str, Any]:
    return {"ok": ok, "why": why}


def trained(family: str) -> dict[str, Any]:
    found = TRAINING[family]
    if family in BY_DATA:
        return cell(False, BY_DATA[family])
    if found["trains"]:
        return cell(True, ON_XLA)
    return cell(False, f"on XLA:CPU: {found['why'].split(': {')[0]}")


def cut(family: str, kind: str, what: str) -> dict[str, Any]:
    found = CORES.get(f"{family}, {kind} 2")
    if found is None:
        return cell(False, f"optimum-neuron 0.0.28 does not cut this family for {what}")
    if found["equal"]:
        return cell(True, ON_CORES)
    why = found.get("error", "").split(": ", 1)[-1] or "the losses are not those of one core"
    return cell(False, f"on two cores: {why}")


def served(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(serve, continuous batching)."""
    found = SERVING[family]
    if found["answers"] and found["equal"] == found["answers"]:
        return cell(True, ON_HOST), cell(True, ON_HOST)
    reason = next(text for words, text in REASONS.items() if words in found["error"])
    return cell(found["builds"], "it builds; prompts are another matter" if found["builds"] else reason), cell(
        False, reason
    )


def lora(family: str) -> dict[str, Any]:
    """LoRA is our own, before the model goes to the device: it trains where the family trains on one core."""
    found = trained(family)
    return cell(True, "as train; the adapter's own tests are on one core") if found["ok"] else found


def table() -> str:
    """The file's text."""
    rows = {}
    for family in FAMILIES:
        serve, batching = served(family)
        rows[family] = {
            TRAIN: trained(family),
            TENSOR: cut(family, "TP", "tensor parallelism"),
            PIPELINE: cut(family, "PP", "pipeline parallelism"),
            LORA: lora(family),
            SERVE: serve,
            BATCHING: batching,
        }
    return json.dumps({"sdk2.20": {"families": rows}}, indent=1) + "\n"
