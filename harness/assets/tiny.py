"""A tiny random Llama, a data set that it learns, and a run file around them: what `harness verify` runs with.

Written with the standard library alone, since the harness knows no torch, and the same bytes every time. The sizes
are the smallest that suit everything that will take the model: head dimension 64, two key-value heads for TP 2, a
vocabulary that two and four cores can share, a tokenizer of single bytes.
"""

from __future__ import annotations

import json
import random
import sys
from array import array
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness import files

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD = 256, 512, 2, 4, 2, 64
VOCABULARY = 264  # <eos>, 256 bytes, and filled up to a multiple of 8
POSITIONS = 128
WORDS = (("red", " hot"), ("blue", " icy"))  # answers of one length: batches with as many labels, on every device
ROWS = {"train": 80, "validation": 19}  # 19: the last batch of an evaluation is not full

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write(folder: Path, run_file: str) -> Path:
    """The model, its data and `run_file` (with "./model" and the files' names in it) in `folder`; the run file."""
    model = folder / "model"
    files.write_bytes(model / "config.json", json.dumps(CONFIG, indent=2).encode())
    files.write_bytes(model / "generation_config.json", json.dumps({"eos_token_id": 0, "pad_token_id": 0}).encode())
    files.write_bytes(model / "tokenizer.json", json.dumps(_tokenizer()).encode())
    files.write_bytes(model / "tokenizer_config.json", json.dumps(_TOKENIZER_CONFIG).encode())
    files.write_bytes(model / "model.safetensors", _weights())
    for name, count in ROWS.items():
        rows = [WORDS[i % 2] for i in range(count)]
        lines = [json.dumps({"prompt": f"{name[0]}{i} {word}:", "completion": a}) for i, (word, a) in enumerate(rows)]
        files.write_bytes(folder / f"{name}.jsonl", "\n".join(lines).encode())
    files.write_bytes(folder / "verify.toml", run_file.encode())
    return folder / "verify.toml"


def shapes() -> dict[str, tuple[int, ...]]:
    """Every parameter of the model by its name in transformers; the output layer is the embedding."""
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name, rows in (("q", HEADS * HEAD), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD)):
            out[f"{layer}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        out[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD)
        out[f"{layer}mlp.gate_proj.weight"] = out[f"{layer}mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        out[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        out[f"{layer}input_layernorm.weight"] = out[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    out["model.norm.weight"] = (HIDDEN,)
    return out


@lru_cache(maxsize=1)
def _weights() -> bytes:
    """The safetensors format: header's length, header, values. https://github.com/huggingface/safetensors#format"""
    chance = random.Random(20)  # noqa: S311 (weights, no secrets)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    values = array("f")
    for name, shape in shapes().items():
        start = 4 * len(values)
        if len(shape) == 1:
            values.extend([1.0] * shape[0])
        else:
            values.extend(chance.gauss(0.0, 0.02) for _ in range(shape[0] * shape[1]))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, 4 * len(values)]}
    if sys.byteorder == "big":
        values.byteswap()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + values.tobytes()


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": POSITIONS,
    "eos_token": "<eos>",
    "pad_token": "<eos>",
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
}


def _tokenizer() -> dict[str, Any]:
    """tokenizer.json: one token a byte, in the printable letters that byte-level BPE writes bytes with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": "<eos>", **special}],
        "normalizer": None,
        "pre_tokenizer": bytes_,
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {"<eos>": 0, **{letters[b]: b + 1 for b in range(256)}},
            "merges": [],
        },
    }
