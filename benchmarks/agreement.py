"""How often engine cpu in bf16 finds the same token likeliest as transformers in fp32: see serve.py.

Prompts, as JSON lists of token ids, come by standard input; the share of positions is the last line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from serve.engines.llama import Architecture, Llama, read_weights


def main() -> None:
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ours = Llama(Architecture.read(config, 1024), read_weights(folder), torch.bfloat16, 1, 1024)
    theirs = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    equal = positions = 0
    for prompt in json.load(sys.stdin)[:16]:
        with torch.inference_mode():
            wanted = theirs(torch.tensor([prompt])).logits[0].argmax(-1)
        found = torch.from_numpy(ours.forward_all([tuple(prompt)])[0]).argmax(-1)
        equal += int((found == wanted).sum())
        positions += len(prompt)
    print(equal / positions)


if __name__ == "__main__":
    main()
