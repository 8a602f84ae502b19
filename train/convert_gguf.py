"""Turn a quantised Llama GGUF into a Hugging Face model directory.

Small models are often published only as GGUF. transformers can load those, but its route sets the
wrong end-of-turn token, drops the padding token, switches a leading BOS on, forgets that digits are
split one by one, and copies the GGUF into every saved model. A model trained with such a tokenizer
never learns to stop. So the file is read here directly: what the metadata says is taken over, and
whatever this module does not understand is refused rather than guessed.

    python -m train.convert_gguf MODEL.gguf OUT_DIR

The same input gives the same bytes on every run, so a checksum can stand for the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from safetensors.torch import save

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

# llama.cpp's names of the parts of one block, and the names transformers gives them.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type matched before any splitting


class ConversionError(Exception):
    """The file cannot be converted; the message is one line for the user."""


class Metadata(dict[str, Any]):
    """The key-value part of a GGUF, with a clear message where a key is missing."""

    def __missing__(self, key: str) -> Any:
        raise ConversionError(f"the GGUF has no metadata key {key}")


def open_gguf(path: Path) -> GGUFReader:
    """Open the file, with the reader's many ways to fail on a bad one reduced to one message."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConversionError(f"cannot read {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ConversionError(f"{path} is not a GGUF file (it starts with {magic!r})")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        # An unknown tensor type arrives here too: the reader turns it into an enum member.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(f"{path} is damaged or of an unknown kind: {reason}") from error


def check_supported(metadata: Metadata) -> None:
    """Refuse what would convert without complaint and then compute something else."""
    for key, value in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        if metadata[key] != value:
            raise ConversionError(f"{key} is {metadata[key]!r}; only {value!r} can be converted")
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise ConversionError("a model with RoPE scaling cannot be converted")


def model_config(metadata: Metadata, tied: bool) -> dict[str, Any]:
    """config.json of the model, every number from the metadata."""
    hidden = int(metadata["llama.embedding_length"])
    heads = int(metadata["llama.attention.head_count"])
    rotated = int(metadata.get("llama.rope.dimension_count", hidden // heads))
    if hidden != heads * rotated:
        raise ConversionError(f"{heads} heads of {rotated} rotated dimensions do not fill {hidden}")
    return {
        "architectures": ["LlamaForCausalLM"],
        **special_token_ids(metadata),
        "head_dim": rotated,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": hidden**-0.5,
        "intermediate_size": int(metadata["llama.feed_forward_length"]),
        "max_position_embeddings": int(metadata["llama.context_length"]),
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": int(metadata["llama.block_count"]),
        "num_key_value_heads": int(metadata.get("llama.attention.head_count_kv", heads)),
        "rms_norm_eps": shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
    }


def shortest(value: float) -> float:
    """Give the number somebody wrote (1e-05), not its float32 neighbour (9.99999974e-06)."""
    return float(str(np.float32(value)))


def special_token_ids(metadata: Metadata) -> dict[str, int]:
    """Ids of the sequence tokens; llama.cpp's eos is the end of a turn in a chat model."""
    eos = int(metadata["tokenizer.ggml.eos_token_id"])
    return {
        "bos_token_id": int(metadata.get("tokenizer.ggml.bos_token_id", eos)),
        "eos_token_id": eos,
        "pad_token_id": int(metadata.get("tokenizer.ggml.padding_token_id", eos)),
    }


def tensor_names(layers: int, tied: bool) -> dict[str, str]:
    """Every tensor the model has to have: name in the GGUF -> name in transformers."""
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if not tied:
        names["output.weight"] = "lm_head.weight"
    for layer in range(layers):
        for part, name in BLOCK_NAMES.items():
            names[f"blk.{layer}.{part}.weight"] = f"model.layers.{layer}.{name}.weight"
    return names


def read_tensor(tensor: ReaderTensor) -> Array:
    """One tensor as float32 in row-major order, whatever it was quantised to."""
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise ConversionError(f"tensor type {tensor.tensor_type.name} cannot be read") from error
    shape = [int(size) for size in reversed(tensor.shape)]  # GGUF names the fastest axis first
    return np.asarray(values, dtype=np.float32).reshape(shape)


def halves_together(weight: Array, heads: int) -> Array:
    """Undo the row order of llama.cpp's rotary embedding in a query or key projection.

    llama.cpp rotates neighbouring rows (0,1), (2,3), ...; transformers rotates row i with row
    i + d/2. The GGUF holds the rows in the first order.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, columns)


def read_weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All weights in bfloat16 under transformers' names; tied embeddings appear once."""
    names = tensor_names(config["num_hidden_layers"], config["tie_word_embeddings"])
    found = {tensor.name: tensor for tensor in reader.tensors}
    if odd := sorted(names.keys() ^ found.keys()):
        raise ConversionError(f"tensors missing or unknown in the GGUF: {', '.join(odd[:5])}")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name, target in names.items():
        values = read_tensor(found[name])
        if (part := name.split(".")[-2]) in heads:
            values = halves_together(values, heads[part])
        weights[target] = torch.tensor(values).to(torch.bfloat16)
    if len(weights["model.embed_tokens.weight"]) != config["vocab_size"]:
        raise ConversionError("the GGUF has not one embedding for every token")
    return weights


def added_tokens(metadata: Metadata) -> list[dict[str, Any]]:
    """Tokens matched as a whole; control tokens are left out of decoded text."""
    kinds = metadata["tokenizer.ggml.token_type"]
    tokens = metadata["tokenizer.ggml.tokens"]
    exact = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": index, "content": content, **exact, "special": kind == CONTROL}
        for index, (content, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def tokenizer_json(metadata: Metadata) -> dict[str, Any]:
    """tokenizer.json, written out by hand so that no library version shapes it.

    Merges are strings ("a b"): tokenizers reads this old form in every version, while the pairs it
    writes itself since 0.20 are refused by older ones. Digits come first in the pre-tokenizer;
    that is what the name "smollm" means in llama.cpp.
    """
    digits = {"type": "Digits", "individual_digits": True}
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    byte_level = {"type": "ByteLevel", **options}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(metadata),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def tokenizer_configs(metadata: Metadata) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer_config.json and special_tokens_map.json."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = special_token_ids(metadata)
    special = {key.removesuffix("_id"): tokens[index] for key, index in ids.items()}
    if "tokenizer.ggml.unknown_token_id" in metadata:
        special["unk_token"] = tokens[metadata["tokenizer.ggml.unknown_token_id"]]
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        # Without this the tokenizer also returns token_type_ids, which generate() rejects.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": int(metadata["llama.context_length"]),
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
    }
    return config, special


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield a directory that appears under its name only when it is complete."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConversionError(f"{target} already exists and is not an empty directory")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as holder:
            partial = Path(holder) / "partial"  # mkdtemp's own 0700 must not reach the model
            partial.mkdir()
            yield partial
            partial.rename(target)
    except OSError as error:
        raise ConversionError(f"cannot write {target}: {error.strerror or error}") from error


def convert(source: Path, target: Path) -> None:
    """Convert one GGUF file to a model directory that must not exist yet."""
    reader = open_gguf(source)
    metadata = Metadata({key: field.contents() for key, field in reader.fields.items()})
    check_supported(metadata)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = model_config(metadata, tied)
    tokenizer_config, special_tokens = tokenizer_configs(metadata)
    texts = {
        "config.json": config,
        "generation_config.json": special_token_ids(metadata),
        "tokenizer.json": tokenizer_json(metadata),
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": special_tokens,
    }
    with new_directory(target) as directory:
        # Not save_file(): it makes a file that only its owner can read.
        weights = save(read_weights(reader, config), metadata={"format": "pt"})
        (directory / "model.safetensors").write_bytes(weights)
        for name, content in texts.items():
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (directory / name).write_text(text + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert a Llama GGUF to a Hugging Face model.")
    parser.add_argument("source", type=Path, metavar="MODEL.gguf")
    parser.add_argument("target", type=Path, metavar="OUT_DIR")
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.target)
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
