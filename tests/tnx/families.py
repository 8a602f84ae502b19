"""What the real transformers-neuronx does with each family, under continuous batching as engine neuron calls it.

    TNX_SOURCE=CHECKOUT python -m tests.tnx.families DIR [FAMILY …]     in .venv-serve
    TNX_SOURCE=CHECKOUT python -m tests.tnx.families --record           writes tests/tnx/families.json

The real host code (or the double, without TNX_SOURCE) above the stand-in device: built by serve.engines.neuron.build
with the engine's own keywords, then
prompts alone, together, in every slot and joined mid-way. found.json says for each family whether every answer is
transformers' own, or what happened first.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from serve.options import ServeOptions
from tests.families import models
from tests.tnx import double, real

RECORDED = Path(__file__).resolve().parent / "families.json"
OPTIONS = ServeOptions(n_positions=160, max_batch_size=4, dtype="fp32")
SLOTS, NEW = 4, 12
PROMPTS: tuple[tuple[int, ...], ...] = ((9, 30, 41, 77), (12, 80, 81, 82, 83, 84, 15), tuple(range(20, 147)))
PROMPTS += (tuple(range(40, 168)), tuple(range(60, 160)))


class Slots:
    """Calls of the library as serve.scheduler makes them: one prompt a call at its own length; every seated sequence
    in a decode step, in the order of slots."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seated: dict[int, list[int]] = {}

    def _forward(self, ids: list[list[int]], places: list[list[int]], slots: Sequence[int]) -> list[int]:
        with torch.inference_mode():
            logits = self.model.forward(
                input_ids=torch.tensor(ids), cache_ids=torch.tensor(places), start_ids=torch.tensor(slots)
            )
        assert logits.shape[0] == len(slots), f"{logits.shape[0]} rows of logits for {len(slots)} sequences"
        return [int(token) for token in logits.float().argmax(dim=1)]

    def enter(self, slot: int, prompt: Sequence[int]) -> None:
        (token,) = self._forward([list(prompt)], [list(range(len(prompt)))], [slot])
        self.seated[slot] = [*prompt, token]

    def decode(self) -> None:
        slots = sorted(self.seated)
        tokens = self._forward(
            [[self.seated[s][-1]] for s in slots], [[len(self.seated[s]) - 1] for s in slots], slots
        )
        for slot, token in zip(slots, tokens, strict=True):
            self.seated[slot].append(token)

    def leave(self, slot: int) -> tuple[int, ...]:
        return tuple(self.seated.pop(slot))


def reference(folder: Path) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Prompt -> prompt and answer, by transformers alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    out = {}
    for prompt in PROMPTS:
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(NEW):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        out[prompt] = tuple(tokens)
    return out


def answers(model: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, what came of it) in every situation."""
    found = []
    for slot, prompt in zip((0, 1, 2, 3, 1), PROMPTS, strict=True):  # alone, in any slot
        slots = Slots(model)
        slots.enter(slot, prompt)
        for _ in range(NEW - 1):
            slots.decode()
        found.append((prompt, slots.leave(slot)))
    together = Slots(model)
    for slot, prompt in enumerate(PROMPTS[:SLOTS]):
        together.enter(slot, prompt)
    for _ in range(NEW - 1):
        together.decode()
    found += [(prompt, together.leave(slot)) for slot, prompt in enumerate(PROMPTS[:SLOTS])]
    # Joined mid-way, and a slot that is used again: the answers come to their ends in different steps.
    joined, begun = Slots(model), {}
    arrivals = [(0, 2, PROMPTS[1]), (2, 0, PROMPTS[3]), (4, 3, PROMPTS[0]), (13, 2, PROMPTS[4]), (14, 1, PROMPTS[2])]
    for step in range(40):
        for _, slot, prompt in (a for a in arrivals if a[0] == step):
            joined.enter(slot, prompt)
            begun[slot] = prompt
        for slot in [s for s, tokens in joined.seated.items() if len(tokens) - len(begun[s]) >= NEW]:
            found.append((begun[slot], joined.leave(slot)))
        if joined.seated:
            joined.decode()
    return found


def unread(model: Any) -> list[str]:
    """Weights that the library did not find in the checkpoint under the names that it asks for."""
    from torch.nn.parameter import UninitializedTensorMixin

    holder = getattr(model, "chkpt_model", None)
    if holder is None:  # the double reads no weights
        return []
    holder.materialize() if hasattr(holder, "materialize") else None
    for part in holder.modules():
        if hasattr(part, "materialize"):
            part.materialize()
    return sorted(name for name, w in holder.named_parameters() if isinstance(w, UninitializedTensorMixin))


def judge(family: str, work: Path) -> dict[str, Any]:
    """{"builds", "answers", "equal", "error"} of one family."""
    from serve.engines import neuron

    folder = work / family
    result: dict[str, Any] = {"builds": False, "unread weights": [], "answers": 0, "equal": 0, "error": ""}
    try:
        models.write(family, folder, scale=0.3)  # KeyError for a family that the image's transformers does not know
        result["unread weights"] = unread(neuron.build(folder, OPTIONS))
        model = neuron.build(folder, OPTIONS)
        result["builds"] = True
        model.to_neuron()
        expected = reference(folder)
        found = answers(model)
        result["answers"] = len(found)
        result["equal"] = sum(expected[prompt] == got for prompt, got in found)
        result["copies to every slot"] = sum(one["graph"] == "broadcast" for one in model.device.trace)
        result["different answers"] = len({expected[p][len(p) :] for p in PROMPTS})
    except Exception as error:  # noqa: BLE001 (which one is the finding)
        # The message of an error that names a path is another one in every run.
        result["error"] = f"{type(error).__name__}: {error}".splitlines()[0].replace(str(work), "")[:160]
    return result


def every(work: Path, names: list[str]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    from serve.engines import neuron

    neuron.serving_problems = lambda *_, **__: []  # the table is made from this: it must not decide what is tried
    source = os.environ.get("TNX_SOURCE")
    real.install(Path(source)) if source else double.install()
    return {family: judge(family, work) for family in names or models.FAMILIES}


# What the library does on the host with a family, and what of ours was held against it.
FILES = ("modeling_auto.py", "base.py", "bucket.py", "config.py", "decoder.py", "module.py")
FILES += tuple(
    f"{name}/model.py" for name in ("llama", "mistral", "mixtral", "gpt2", "opt", "bloom", "gptj", "gptneox")
)


def record(source: Path) -> None:
    import transformers

    from tests.tnx.record_table import commit_of

    package = source / "src" / "transformers_neuronx"
    with tempfile.TemporaryDirectory() as folder:
        found = every(Path(folder), [])
    commit = commit_of(source) or os.environ["TNX_COMMIT"]
    said = {
        "source": {
            "repository": "https://github.com/aws-neuron/transformers-neuronx",
            "commit": commit,
            "sha256": {name: hashlib.sha256((package / name).read_bytes()).hexdigest() for name in FILES},
            "recorded with": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
        "families": found,
    }
    RECORDED.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--record":
        record(Path(os.environ["TNX_SOURCE"]))
    else:
        (Path(sys.argv[1]) / "found.json").write_text(json.dumps(every(Path(sys.argv[1]), sys.argv[2:])))
