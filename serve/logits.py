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

from containers.artifact import ArtifactError, opened
from containers.contract import DEVICE_ENV, Paths
from serve import engines
from serve.generator import Generator
from serve.options import ServeOptions
from serve.prepare import options_from
from serve.request import Parameters, Request
from serve.scheduler import Step

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

    from serve.engines.cpu import choose_dtype

    engine = engines.load(engine_name, model_dir, options)
    # Engine cpu serves in fp32 where the processor has no bf16; engine neuron in what was asked for.
    dtype = choose_dtype(options.dtype)[0] if engine_name == "cpu" else options.dtype
    reference = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32).eval()
    worst, rows, equal = 0.0, 0, 0
    for prompt in PROMPTS:
        generator = Generator(engine)
        with recorded(engine) as seen:
            (job,) = generator.submit((Request(prompt, Parameters(max_new_tokens=NEW_TOKENS)),), float("inf"))
            while not generator.idle:
                generator.step()
        if job.error:
            raise ArtifactError(f"the engine failed: {job.error}")
        ids = [*job.sequence.prompt, *job.sequence.generated[:-1]]
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
def recorded(engine: Any) -> Iterator[list[Any]]:
    """The logits, (vocabulary,) each, of every token chosen while the block runs; for one prompt at a time."""
    import torch

    original = engine.forward
    seen: list[Any] = []

    def forward(step: Step) -> Any:
        logits = original(step)
        seen.extend(torch.from_numpy(row.copy()) for row in logits)
        return logits

    engine.forward = forward
    try:
        yield seen
    finally:
        engine.forward = original


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
