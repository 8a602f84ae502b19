"""An engine's logits against transformers' own on the CPU in fp32: `python -m serve.logits [MODEL_DIR]`.

Each prompt is answered by the engine, greedily, as a request is. The reference then reads prompt and answer in one
pass and has to give the same logits at every position that the engine chose a token from. Writes logits.json into
the job's output data. The options are those of the endpoint (OPTION_<NAME>), the model that of the channel `model`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from containers.artifact import opened
from containers.contract import DEVICE_ENV, Paths
from serve import engines
from serve.options import ServeOptions
from serve.prepare import options_from
from serve.protocols.lmi import Parameters

# Short, odd and long: several context buckets, a prompt of one token.
PROMPTS = ("v0 red:", "v1 blue:", "a", "What is this?", "v2 red: hot, and once more: v3 blue:")
NEW_TOKENS = 8
# Of the largest logit of a row. bf16 has 8 bits of mantissa, 1/256, and a few layers add up; fp32 differs by the
# order of sums alone.
ALLOWED = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2}
RESULT = "logits.json"


def compare(model_dir: Path, engine_name: str, options: ServeOptions) -> dict[str, Any]:
    """{"difference": largest, as a share of the row's largest logit; "rows", "tokens_equal", "allowed", …}."""
    import torch
    from transformers import AutoModelForCausalLM

    engine: Any = engines.load(engine_name, model_dir, options)
    # Engine cpu serves in fp32 where the processor has no bf16; engine neuron in what was asked for.
    dtype = {torch.float32: "fp32"}.get(engine.model.dtype, "bf16") if engine_name == "cpu" else options.dtype
    reference = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32).eval()
    worst, rows, equal = 0.0, 0, 0
    for prompt in PROMPTS:
        with recorded(engine.model) as seen:
            engine.generate([prompt], Parameters(max_new_tokens=NEW_TOKENS))
        chosen = [int(row.argmax()) for row in seen]
        ids = [*engine.tokenizer(prompt)["input_ids"], *chosen[:-1]]
        with torch.inference_mode():
            wanted = reference(torch.tensor([ids])).logits[0, -len(seen) :].float()
        for ours, theirs in zip(seen, wanted):  # noqa: B905
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
            equal += int(ours.argmax()) == int(theirs.argmax())
            rows += 1
    allowed = ALLOWED[dtype]
    return {
        "engine": engine_name,
        "dtype": dtype,
        "difference": worst,
        "allowed": allowed,
        "rows": rows,
        "tokens_equal": equal,
        "ok": rows > 0 and worst <= allowed,
    }


@contextmanager
def recorded(model: Any) -> Iterator[list[Any]]:
    """The logits, (vocabulary,) each, of every token chosen while the block runs; for one prompt at a time."""
    original, seen = model.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        logits = getattr(out, "logits", out)  # transformers' (1, columns, vocabulary), transformers-neuronx' (1, v)
        seen.append((logits[0, -1] if logits.dim() == 3 else logits[0]).detach().float().cpu().clone())
        return out

    model.forward = forward
    try:
        yield seen
    finally:
        model.forward = original


def main(argv: list[str]) -> int:
    paths = Paths.from_environment()
    model_dir = Path(argv[0]) if argv else opened(paths.channel("model"))
    found = compare(model_dir, os.environ.get(DEVICE_ENV) or "neuron", options_from(os.environ))
    paths.output_data.mkdir(parents=True, exist_ok=True)
    (paths.output_data / RESULT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("logits:", json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
