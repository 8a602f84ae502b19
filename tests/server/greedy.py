"""transformers' greedy search in the trainer's environment: `python -m tests.server.greedy FOUND` in .venv-train.

FOUND is exactness.py's result; greedy.json beside it says which answers of engine cpu are not this environment's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers


def main(path: Path) -> None:
    torch.set_num_threads(1)
    found = json.loads(path.read_text(encoding="utf-8"))
    result: dict[str, object] = {"transformers": transformers.__version__}
    for name in sys.argv[2:]:
        model = transformers.AutoModelForCausalLM.from_pretrained(found[name]["folder"], torch_dtype=torch.float32)
        different = []
        for prompt, said in found[name]["said"]:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                out = model.eval().generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
                )
            if out[0, len(prompt) :].tolist() != said:
                different.append([prompt, out[0, len(prompt) :].tolist(), said])
        result[name] = different
    path.with_name("greedy.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
