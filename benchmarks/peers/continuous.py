"""transformers 5's continuous batching: `python continuous.py MODEL`; lines in and out as in sequential.py."""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

torch.set_num_threads(2)


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=64)
    manager = model.init_continuous_batching(generation_config=config)
    manager.start()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        names = []
        for number, (at, prompt) in enumerate(asked["arrivals"]):
            time.sleep(max(0.0, began + at - time.perf_counter()))
            names.append(
                manager.add_request(
                    prompt, request_id=f"{began}-{number}", max_new_tokens=asked["new"], record_timestamps=True
                )
            )
        results = {}
        while len(results) < len(names):
            result = manager.get_result(timeout=0.2)
            if result is not None and result.is_finished():
                results[result.request_id] = result
        found = [results[name] for name in names]
        print(
            json.dumps(
                {
                    "times": [[t - began for t in r.timestamps] for r in found],
                    "tokens": [list(r.generated_tokens) for r in found],
                }
            ),
            flush=True,
        )


main()
