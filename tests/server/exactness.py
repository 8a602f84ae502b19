"""Engine `cpu` against transformers' own greedy search: `python -m tests.server.exactness DIR` in .venv-serve.

found.json: for each kind of model how the engine computes it and which answers are not equal. DIR is an empty
directory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from serve.engines import cpu
from serve.engines.llama import Architecture, Llama, read_weights
from serve.generator import Generator
from serve.options import OptionError, ServeOptions
from serve.request import Parameters, Request
from tests.server import models

OPTIONS = ServeOptions(n_positions=160, max_batch_size=3, dtype="fp32")
TEXTS = ("q", "red warm", "Is it blue, or green?", "qzjvk" * 9, "warm? " * 12, "v2 red: hot")
NEW = 24


def compare(folder: Path) -> dict[str, Any]:
    """Six prompts that arrive while others run, three at a time, prompts read in parts of 16 tokens."""
    cpu.CHUNK = 16
    engine = cpu.load(folder, OPTIONS)
    reference = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    generator = Generator(engine)
    jobs = []
    for text in TEXTS:
        jobs += generator.submit((Request(text, Parameters(max_new_tokens=NEW)),), float("inf"))
        generator.step()
        generator.step()
    while not generator.idle:
        generator.step()
    different, apart = [], 0.0
    for job in jobs:
        tokens = torch.tensor([job.sequence.prompt])
        with torch.inference_mode():
            out = reference.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False, pad_token_id=0
            )
            whole = [*job.sequence.prompt, *job.sequence.generated]
            theirs = reference(torch.tensor([whole])).logits[0]
        ours = torch.from_numpy(engine.forward_all([tuple(whole)])[0])
        apart = max(apart, float((ours - theirs).abs().max() / theirs.abs().max()))
        if out[0, tokens.shape[1] :].tolist() != job.sequence.generated:
            different.append([job.request.text, out[0, tokens.shape[1] :].tolist(), job.sequence.generated])
    answers = {tuple(job.sequence.generated) for job in jobs}
    return {
        "engine": engine.description,
        "folder": str(folder),
        "different": different,
        "apart": apart,
        "answers": len(answers),
        "said": [[list(job.sequence.prompt), job.sequence.generated] for job in jobs],
    }


def in_bf16(folder: Path) -> list[float]:
    """At which share of positions the likeliest next token is fp32's: ours in bf16, transformers' in bf16."""
    config = json.loads((folder / "config.json").read_text())
    ours = Llama(Architecture.read(config, 256), read_weights(folder), torch.bfloat16, 1, 256)
    exact, rounded = (
        AutoModelForCausalLM.from_pretrained(folder, torch_dtype=t).eval() for t in (torch.float32, torch.bfloat16)
    )
    chance, equal = torch.Generator().manual_seed(0), torch.zeros(2)
    for _ in range(8):
        tokens = torch.randint(config["vocab_size"], (1, 250), generator=chance)
        with torch.inference_mode():
            wanted = exact(tokens).logits[0].argmax(-1)
            theirs = rounded(tokens).logits[0].argmax(-1)
        mine = torch.from_numpy(ours.forward_all([tuple(tokens[0].tolist())])[0]).argmax(-1)
        equal += torch.tensor([(mine == wanted).float().mean(), (theirs == wanted).float().mean()])
    return [round(float(x) / 8, 4) for x in equal]


def rope_parameters(folder: Path) -> list[Any]:
    """A config.json as transformers 5 writes it: ours reads it, and transformers 4 is not asked to."""
    path = folder / "config.json"
    before = path.read_text()
    config = json.loads(before)
    with torch.inference_mode():
        wanted = torch.from_numpy(cpu.load(folder, OPTIONS).forward_all([(1, 2, 3, 4)])[0])
        theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling")
        path.write_text(json.dumps({**config, "rope_parameters": {**scaling, "rope_theta": theta}}))
        found: list[Any] = [
            bool(torch.equal(torch.from_numpy(cpu.load(folder, OPTIONS).forward_all([(1, 2, 3, 4)])[0]), wanted))
        ]
        path.write_text(json.dumps({**config, "rope_parameters": {"rope_type": "yarn", "rope_theta": theta}}))
        try:
            cpu.load(folder, OPTIONS)
        except OptionError as error:
            found.append(str(error))
    path.write_text(before)
    return found


def main(work: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in (*models.OURS, *models.THEIRS):
        try:
            found[name] = compare(models.write(work, name))
        except Exception as error:  # noqa: BLE001 (the test shows it)
            import traceback

            traceback.print_exc()
            found[name] = {"engine": f"{type(error).__name__}: {error}", "different": [], "apart": 1.0, "answers": 0}
    tiny = models.write(work, "llama, llama3")
    found["in bf16"] = in_bf16(tiny)
    found["rope_parameters"] = rope_parameters(tiny)
    (work / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
