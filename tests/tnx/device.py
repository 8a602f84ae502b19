"""Stand-in for the closed part of the Neuron stack: the compiled graphs of one model, and their memory.

Both hosts run on it: the double, and the real transformers-neuronx source (tests/tnx/real.py). What a graph does was
read from the public graph builders (llama/hlo.py, layers/attention.py, hlo.py; commit in table.json):
  context  writes positions 0..bucket-1 of the one slot in start_ids, whatever cache_ids says; cache_ids are the
           rotary positions; the mask is the fixed triangle; only the row at last_token_id gets logits.
  token    row i belongs to slot i; writes position cache_ids[i] and attends to every earlier one. It runs every slot:
           one that the caller left out was filled with token 0 at position 0, and loses what stood there.
The memory keeps token and rotary position instead of keys and values, and the model runs over them again: the same
numbers as long as nothing in the slot was overwritten, other numbers as soon as it was.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

WIDTH = 72  # one slot's share of Echo's answers: more than the positions of any model of the table
AMP = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class DeviceError(Exception):
    """The closed part would fail, or do what nobody can tell from the public source."""


class Device:
    """Slots of one model; `run` is one graph execution. Keeps every call in `trace`."""

    def __init__(self, slots: int, positions: int) -> None:
        self.tokens = [[0] * positions for _ in range(slots)]
        self.places = [[0] * positions for _ in range(slots)]
        self.trace: list[dict[str, Any]] = []

    def run(self, tag: str, size: int, *inputs: torch.Tensor) -> torch.Tensor:
        """Execute the graph `tag` of bucket `size`; logits of shape (vocabulary, 1, rows)."""
        # OPT and GPT-2 add the start of an attention window, which they do not use here.
        ids, cache_ids, start_ids, last = (t.tolist() for t in inputs[:4])
        width = size if tag == "context" else 1
        rows = 1 if tag == "context" else len(self.tokens)
        shape = [width] * rows
        if [len(r) for r in ids] != shape or [len(r) for r in cache_ids] != shape:
            raise DeviceError(f"{tag} graph of {rows} x {width} was sent {ids} with cache_ids {cache_ids}")
        if len(start_ids) != rows or len(last) != rows or not all(0 <= s < len(self.tokens) for s in start_ids):
            raise DeviceError(f"{tag} graph of {rows} rows was sent start_ids {start_ids}, last_token_id {last}")
        if max(map(max, cache_ids)) >= size:
            raise DeviceError(f"{cache_ids} reach beyond bucket {size}")
        self.trace.append(
            {"graph": f"{tag} {size}", "ids": ids, "cache_ids": cache_ids, "start_ids": start_ids, "last": last}
        )
        if tag == "context":
            slot = start_ids[0]
            self.tokens[slot][:size] = ids[0]
            self.places[slot][:size] = cache_ids[0]
            return self._column(slot, last[0] + 1)
        for slot, ((token,), (place,)) in enumerate(zip(ids, cache_ids, strict=True)):
            self.tokens[slot][place] = token
            self.places[slot][place] = place
        return torch.cat([self._column(slot, c[0] + 1) for slot, c in enumerate(cache_ids)], dim=2)

    def broadcast(self) -> None:
        """GPT-2's prompt graph has a cache of one slot, which is then copied to every slot of the token graph."""
        self.trace.append({"graph": "broadcast"})
        for slot in range(1, len(self.tokens)):
            self.tokens[slot], self.places[slot] = list(self.tokens[0]), list(self.places[0])

    def _column(self, slot: int, length: int) -> torch.Tensor:
        logits = self.logits(slot, tuple(self.tokens[slot][:length]), tuple(self.places[slot][:length]))
        return logits.reshape(-1, 1, 1)

    def logits(self, slot: int, tokens: tuple[int, ...], places: tuple[int, ...]) -> torch.Tensor:
        raise NotImplementedError


class Echo(Device):
    """Logits whose maximum says which slot a row belongs to and how much of it was read."""

    def logits(self, slot: int, tokens: tuple[int, ...], places: tuple[int, ...]) -> torch.Tensor:
        out = torch.zeros(4 * WIDTH)
        out[slot * WIDTH + len(tokens)] = 1.0
        return out


class Hosted(Device):
    """The model of a directory, computed by transformers in fp32 from weights rounded to `amp`."""

    def __init__(self, slots: int, positions: int, folder: Path, amp: str) -> None:
        super().__init__(slots, positions)
        from transformers import AutoConfig, AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
        weights = {k: v.to(AMP[amp]).float() for k, v in read_weights(folder).items()}
        missing = model.load_state_dict(weights, strict=False).missing_keys
        assert missing in ([], ["lm_head.weight"]), missing  # a tied output layer has no entry of its own
        model.tie_weights()

        @lru_cache(maxsize=4096)
        def logits(tokens: tuple[int, ...], places: tuple[int, ...]) -> torch.Tensor:
            with torch.inference_mode():
                return model(torch.tensor([tokens]), position_ids=torch.tensor([places])).logits[0, -1]

        self._logits = logits

    def logits(self, slot: int, tokens: tuple[int, ...], places: tuple[int, ...]) -> torch.Tensor:
        return self._logits(tokens, places)


class Message:
    """What a graph's protocol buffer is asked for."""

    def __init__(self, text: str) -> None:
        self.name, self.text = "graph", text

    def SerializeToString(self) -> bytes:
        return self.text.encode()


class Kernel:
    """One graph: a description that stands for its HLO, and the compiled bytes once there are some."""

    compiled = 0

    def __init__(self, description: str) -> None:
        self.hlo_module = Message(description)
        self.neff_bytes: bytes | None = None

    def compile(self, repetitions: int = 1) -> bytes:
        type(self).compiled += 1
        return b"NEFF " + self.hlo_module.SerializeToString()


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights by name, from the first of the forms that the library looks for, in its order."""
    from safetensors.torch import load_file

    single, sharded, pickle = (
        folder / n for n in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if single.is_file():
        return load_file(single)
    if sharded.exists():
        names = set(json.loads(sharded.read_text())["weight_map"].values())
        return {k: v for n in sorted(names) for k, v in load_file(folder / n).items()}
    if pickle.is_dir():
        names = json.loads((pickle / "key_to_filename.json").read_text())
        return {k: torch.load(pickle / n) for k, n in names.items()}
    if pickle.is_file():
        return torch.load(pickle)
    raise FileNotFoundError(f"Can not find model.safetensors or pytorch_model.bin in {folder}")
