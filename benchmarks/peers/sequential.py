"""transformers' generate, one request after the other: `python sequential.py MODEL`, where transformers is installed.

A line of standard input {"arrivals": [[seconds, prompt token ids], ...], "new": tokens} is answered by a line
{"times": [[seconds of each token, from the start], ...], "tokens": [[ids], ...]}. Nothing ends before `new` tokens.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

torch.set_num_threads(2)


class Clock(BaseStreamer):
    """When each token came; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.prompt = True

    def put(self, value: object) -> None:
        if not self.prompt:
            self.times.append(time.perf_counter())
        self.prompt = False

    def end(self) -> None:
        pass


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16).eval()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began, times, tokens = time.perf_counter(), [], []
        for at, prompt in asked["arrivals"]:
            time.sleep(max(0.0, began + at - time.perf_counter()))
            clock, ids = Clock(), torch.tensor([prompt])
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    min_new_tokens=asked["new"],
                    max_new_tokens=asked["new"],
                    do_sample=False,
                    pad_token_id=0,
                    streamer=clock,
                )
            times.append([t - began for t in clock.times])
            tokens.append(out[0, len(prompt) :].tolist())
        print(json.dumps({"times": times, "tokens": tokens}), flush=True)


main()
