"""A directory with a base model, checked before anything is paid for: files, weights, and whether it is understood.

Only headers are read, so that a model of 100 GB takes as long as a small one. The harness checks by it before it
uploads, the trainer before it loads. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

# Families whose losses in packed rows are shown to equal those of single ones (tests/chain/test_packing.py).
PACKED_FAMILIES: tuple[str, ...] = ("llama", "mistral", "qwen2", "gemma", "gemma2", "phi", "phi3", "granite", "olmo")
PACKED_FAMILIES += ("olmo2", "stablelm", "cohere", "cohere2", "starcoder2")

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", *_INDEXES[:1], "pytorch_model.bin", *_INDEXES[1:])
_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_MAX_HEADER = 100 << 20  # safetensors' own limit
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_FLOATS = ("F64", "F32", "F16", "BF16")
_EMBEDDING = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_OTHER_TASKS: tuple[str, ...] = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
)
_OTHER_TASKS += ("ForConditionalGeneration", "ForSeq2SeqLM", "ForImageClassification", "EncoderModel")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Known:
    """What the stack's transformers understands; generated from the package into train/options/."""

    transformers: str
    model_types: tuple[str, ...] = ()  # with a causal language model
    rope_types: tuple[str, ...] = ()
    tokenizer_classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Known:
        """From the generated JSON."""
        lists = {k: tuple(raw[k]) for k in ("model_types", "rope_types", "tokenizer_classes")}
        return cls(transformers=str(raw["transformers"]), **lists)


@dataclass(frozen=True)
class Finding:
    """What is wrong with the directory: one line, the reason, what to do."""

    what: str
    why: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return self.what + (f": {self.why}" if self.why else "") + (f" ({self.hint})" if self.hint else "")


def check(folder: Path, known: Known) -> list[Finding]:
    """Everything that is wrong with the model in `folder`; empty where it can be trained."""
    if not folder.is_dir():
        missing = "a link that leads nowhere" if folder.is_symlink() else "no such directory"
        return [Finding(f"{folder}: {missing}")]
    if other := _something_else(folder):
        return [other]
    found: list[Finding] = []
    read = {name: _read_json(folder / name, found) for name in _JSON if _there(folder / name, found)}
    config = read.get("config.json")
    if "config.json" not in read:
        found.append(Finding(f"{folder}: no config.json", "it says what kind of model this is"))
    if config is not None:
        found += _config(config, known)
    found += _tokenizer(folder, read, config, known)
    found += _weights(folder, config)
    return found


def _there(path: Path, found: list[Finding]) -> bool:
    if path.is_symlink() and not path.exists():
        found.append(
            Finding(f"{path.name}: a link to {path.readlink()}, which is not there", hint="download it again")
        )
    return path.is_file()


def _something_else(folder: Path) -> Finding | None:
    """A directory that is no model in transformers' form, named."""
    names = {p.name for p in folder.iterdir()}
    snapshot = next(iter(sorted((folder / "snapshots").glob("*"))), folder / "snapshots")
    own = "take the repository's version for transformers (often named -hf)"
    signs = (
        (not names, Finding("the directory is empty")),
        ("adapter_config.json" in names, Finding("a LoRA adapter, not a model", hint="merge it into its base model")),
        (
            any(name.endswith(".gguf") for name in names),
            Finding("a GGUF model", "its weights are quantised", "take the version with safetensors"),
        ),
        (
            "params.json" in names or any(name.startswith("consolidated.") for name in names),
            Finding("weights in their authors' own form, not in transformers'", hint=own),
        ),
        ("snapshots" in names, Finding("a hub cache, not a model", hint=f"use {snapshot}")),
        ("model_index.json" in names, Finding("a diffusion pipeline, not a language model")),
    )
    if "config.json" in names:
        return None
    return next((Finding(f"{folder}: {f.what}", f.why, f.hint) for seen, f in signs if seen), None)


def _read_json(path: Path, found: list[Finding]) -> dict[str, Any] | None:
    """A JSON object; None and a finding where it is none."""
    problem, hint = "", "download it again"
    value: Any = None
    try:
        raw = path.read_bytes()
        if raw.startswith(_LFS):
            problem, hint = "a Git LFS pointer, not the file itself", "git lfs pull"
        elif raw.startswith(b"\xef\xbb\xbf"):
            problem, hint = "begins with a byte order mark, which transformers does not read", "remove it"
        elif not raw.strip():
            problem = "empty"
        else:
            value = json.loads(raw.decode("utf-8"))
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte {error.start})"
    except (ValueError, RecursionError) as error:
        problem = f"not JSON ({str(error) or 'nested too deep'})"
    if not problem and not isinstance(value, dict):
        problem = f"a JSON object expected, not {type(value).__name__}"
    if problem:
        found.append(Finding(f"{path.name}: {problem}", hint=hint))
        return None
    return dict(value)


def has_chat_template(folder: Path) -> bool:
    """Whether the model has a chat template: in tokenizer_config.json, or beside it as transformers 5 writes."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def fits(folder: Path, values: Mapping[str, Any]) -> list[Finding]:
    """What of a run's flags the model in `folder` cannot do; empty where config.json is broken: `check` says so."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return list(unfit(config, values)) if isinstance(config, dict) else []


def unfit(config: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Finding]:
    """What of a run's flags a model of this configuration cannot do."""
    block, longest = values.get("block_size", 512), config.get("max_position_embeddings")
    if isinstance(block, int) and isinstance(longest, int) and block > longest:
        yield Finding(f"block_size {block} exceeds the model's {longest} positions", hint=f"set block_size {longest}")
    if values.get("packing") is not True:
        return
    kind = config.get("model_type")
    if kind not in PACKED_FAMILIES:
        known = ", ".join(PACKED_FAMILIES)
        yield Finding(f"packing is not shown to be right for model type {kind}", hint=f"it is for {known}")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if isinstance(block, int) and isinstance(window, int) and block > window:
        why = "the mask of packed rows has no window"
        yield Finding(f"packing with block_size {block} above the model's sliding window {window}", why)


# -- config.json -----------------------------------------------------------------------------------------------------


def _config(config: Mapping[str, Any], known: Known) -> Iterator[Finding]:
    yield from _architecture(config, known)
    yield from _rope(config, known)
    method = config.get("quantization_config") or config.get("compression_config")
    if method:
        name = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        yield Finding(
            f"config.json: the model is quantised ({name})",
            "training changes weights, and quantised ones cannot be changed",
            "take the model that it was made from, in bf16 or fp32",
        )
    yield from _sizes(config)


def _architecture(config: Mapping[str, Any], known: Known) -> Iterator[Finding]:
    kind, version = config.get("model_type"), f"transformers {known.transformers}"
    if not isinstance(kind, str):
        yield Finding("config.json: model_type is missing", f"{version} cannot tell which model this is")
    elif kind not in known.model_types and config.get("auto_map"):
        why = f"its code (auto_map) is not run in the image, and {version} does not know the type"
        yield Finding(f'config.json: model type "{kind}" needs code of its own', why, "take a model of a known type")
    elif kind not in known.model_types:
        close = get_close_matches(kind, known.model_types, 1)
        hint = f'did you mean "{close[0]}"?' if close else "take an older model, or another stack"
        yield Finding(f'config.json: model type "{kind}" is not a causal language model of {version}', hint=hint)
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else []:
        if isinstance(name, str) and name.endswith(_OTHER_TASKS):
            why = "it was trained for another task: its output layer is another one"
            yield Finding(f"config.json: architecture {name} is not a causal language model", why)


def _rope(config: Mapping[str, Any], known: Known) -> Iterator[Finding]:
    """Positions as transformers 5 writes them, which 4.x passes over: it would train with rope_theta 10000."""
    version = f"transformers {known.transformers}"
    new = config.get("rope_parameters")
    if isinstance(new, dict) and not known.transformers.startswith("5"):
        nested = any(isinstance(v, dict) for v in new.values())
        wanted: dict[str, Any] = {}
        if not nested:
            wanted = {"rope_theta": new.get("rope_theta")} if "rope_theta" in new else {}
            rest = {k: v for k, v in new.items() if k not in ("rope_theta", "partial_rotary_factor")}
            if rest.get("rope_type", "default") != "default":
                wanted["rope_scaling"] = rest
            if "partial_rotary_factor" in new:
                wanted["partial_rotary_factor"] = new["partial_rotary_factor"]
        different = {k: v for k, v in wanted.items() if config.get(k) != v}
        if nested or different:
            why = f"written by transformers 5; {version} passes over it and would use other positions (theta 10000)"
            hint = f"add to config.json: {json.dumps(different)[1:-1]}" if different else "take an older version"
            yield Finding("config.json: rope_parameters is not understood", why, hint)
    scaling = config.get("rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind is not None and kind not in known.rope_types:
        yield Finding(
            f'config.json: rope_scaling of type "{kind}" is not known to {version}',
            hint=f"it knows {', '.join(known.rope_types)}",
        )


def _sizes(config: Mapping[str, Any]) -> Iterator[Finding]:
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            yield Finding(f"config.json: {key} is {value!r}; it must be a whole number from 1")
    theta = config.get("rope_theta")
    if theta is not None and (isinstance(theta, bool) or not isinstance(theta, (int, float)) or not theta > 0):
        yield Finding(f"config.json: rope_theta is {theta!r}; it must be a number above 0")


# -- tokenizer -------------------------------------------------------------------------------------------------------


def _tokenizer(
    folder: Path, read: Mapping[str, Any], config: Mapping[str, Any] | None, known: Known
) -> Iterator[Finding]:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield Finding(
            f"{folder}: no tokenizer (tokenizer.json)", hint="copy the tokenizer's files from the base model"
        )
    settings = read.get("tokenizer_config.json") or {}
    name = settings.get("tokenizer_class")
    if isinstance(name, str) and known.tokenizer_classes and name not in known.tokenizer_classes:
        why = f"transformers {known.transformers} has no such class"
        own = isinstance(settings.get("auto_map"), dict) and "AutoTokenizer" in settings["auto_map"]
        if own:
            why = "its code (auto_map) is not run in the image"
        hint = 'with a tokenizer.json, "PreTrainedTokenizerFast" reads it' if not own else ""
        yield Finding(f"tokenizer_config.json: tokenizer class {name} is not known", why, hint)
    tokenizer = read.get("tokenizer.json")
    if tokenizer is None:
        return
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        yield Finding("tokenizer.json: no vocabulary in it", hint="download it again")
        return
    vocabulary = (config or {}).get("vocab_size")
    added = {t.get("content"): t.get("id") for t in tokenizer.get("added_tokens") or [] if isinstance(t, dict)}
    for what in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(what)
        token = token.get("content") if isinstance(token, dict) else token
        number = added.get(token)
        if isinstance(vocabulary, int) and isinstance(number, int) and number >= vocabulary:
            why = f"it has id {number}, the model has embeddings for {vocabulary} tokens"
            yield Finding(f"tokenizer_config.json: {what} {token} is not in the model", why, "resize the model first")


# -- weights ---------------------------------------------------------------------------------------------------------


def tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Every tensor of a directory's safetensors files by name, for a directory that `check` has nothing against."""
    found: list[Finding] = []
    index = folder / _INDEXES[0]
    if (folder / _WEIGHTS[0]).is_file():
        return _header(folder / _WEIGHTS[0], found) or {}
    if not index.is_file():
        return {}
    raw = _read_json(index, found) or {}
    return _shards(folder, index.name, raw.get("weight_map", {}), found)


def _weights(folder: Path, config: Mapping[str, Any] | None) -> Iterator[Finding]:
    if not any((folder / name).is_file() or (folder / name).is_symlink() for name in _WEIGHTS):
        parts = sorted(p.name for p in folder.glob("*.safetensors"))
        why = f"{', '.join(parts[:3])} without model.safetensors.index.json" if parts else ""
        yield Finding(f"{folder}: no weights (model.safetensors)", why)
        return
    found: list[Finding] = []
    tensors: dict[str, dict[str, Any]] = {}
    if (folder / _WEIGHTS[0]).exists() or (folder / _WEIGHTS[0]).is_symlink():  # what transformers takes first
        tensors = _header(folder / _WEIGHTS[0], found) or {}
    else:
        index = next((n for n in _INDEXES if (folder / n).is_file()), None)
        if index is None:
            yield from _pickle(folder / "pytorch_model.bin")
            return
        raw = _read_json(folder / index, found)
        places = raw.get("weight_map") if raw is not None else None
        if raw is not None and not isinstance(places, dict):
            found.append(Finding(f"{index}: no weight_map in it", hint="download it again"))
        if isinstance(places, dict):
            tensors = _shards(folder, index, places, found)
    yield from found
    if not found and tensors:
        yield from _against(tensors, config or {})


def _shards(folder: Path, index: str, places: Mapping[str, Any], found: list[Finding]) -> dict[str, dict[str, Any]]:
    """The tensors of all files of an index, which must be there and have what it says."""
    tensors: dict[str, dict[str, Any]] = {}
    names = sorted({str(name) for name in places.values()})
    if missing := [name for name in names if not (folder / name).is_file()]:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        found.append(
            Finding(
                f"{index} names {shown}", f"of its {len(names)} files {len(missing)} are missing", "download again"
            )
        )
    for name in names:
        if name in missing:
            continue
        if not name.endswith(".safetensors"):
            found.extend(_pickle(folder / name))
            continue
        header = _header(folder / name, found)
        if header is None:
            continue
        if lost := [t for t, place in places.items() if place == name and t not in header]:
            what = f"{name}: {len(lost)} weights that {index} says are in it are not, {lost[0]} for one"
            found.append(Finding(what, hint="download both again"))
        tensors |= header
    return tensors


def _header(path: Path, found: list[Finding]) -> dict[str, dict[str, Any]] | None:
    """Name -> dtype, shape and offsets of a file's tensors. https://github.com/huggingface/safetensors#format"""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            start = handle.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            text = handle.read(length) if 0 < length <= _MAX_HEADER else b""
    except OSError as error:
        if _there(path, found):
            found.append(Finding(f"{path.name}: cannot be read ({error.strerror})", hint="download it again"))
        return None
    problem = ""
    header: Any = None
    if start.startswith(_LFS[:8]):
        found.append(Finding(f"{path.name}: a Git LFS pointer, not the weights", hint="git lfs pull"))
        return None
    if length <= 0 or length > _MAX_HEADER or length > size - 8:
        problem = "not a safetensors file, or cut off in its header"
    else:
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            problem = "its header is not JSON"
    if not problem:
        problem = _wrong_header(header, size - 8 - length)
    if problem:
        found.append(Finding(f"{path.name}: {problem}", f"{size} bytes", "download it again"))
        return None
    return {k: v for k, v in header.items() if k != "__metadata__"}


def _wrong_header(header: Any, size: int) -> str:
    """What is wrong with a header for `size` bytes of values."""
    if not isinstance(header, dict):
        return "its header is not a JSON object"
    end = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = tensor["data_offsets"]
            count, dtype = math.prod(tensor["shape"]), tensor["dtype"]
            whole = _BYTES.get(dtype)
            if not 0 <= first <= last or (whole is not None and last - first != count * whole):
                return f"the size of {name} does not fit its shape"
        except (KeyError, TypeError, ValueError):
            return f"its header says nothing useful of {name}"
        end = max(end, last)
    if end > size:
        return f"{end - size} bytes are missing: it is cut off"
    return ""


def _pickle(path: Path) -> Iterator[Finding]:
    """A file of torch.save: a zip archive or, before torch 1.6, a pickle."""
    with path.open("rb") as handle:
        start = handle.read(len(_LFS))
        handle.seek(0, 2)
        size = handle.tell()
    if start.startswith(_LFS):
        yield Finding(f"{path.name}: a Git LFS pointer, not the weights", hint="git lfs pull")
    elif not start.startswith((b"PK\x03\x04", b"\x80")):
        yield Finding(f"{path.name}: not a file of torch.save", f"{size} bytes", "download it again")
    elif start.startswith(b"PK"):
        with path.open("rb") as handle:
            handle.seek(max(0, size - (1 << 16)))
            if b"PK\x05\x06" not in handle.read():
                yield Finding(f"{path.name}: cut off", f"{size} bytes, no end of the archive", "download it again")


def _against(tensors: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[Finding]:
    """The weights against config.json: numbers, embedding, layers."""
    odd = sorted({str(t["dtype"]) for t in tensors.values()} - set(_FLOATS) - {"BOOL", "I64", "U8"})
    packed = [n for n in tensors if n.endswith((".qweight", ".weight_packed", ".absmax", ".weight_scale"))]
    if (odd or packed) and not config.get("quantization_config"):
        what = f"{packed[0]}" if packed else f"values of type {', '.join(odd)}"
        yield Finding(f"the weights are quantised ({what})", "training needs bf16, fp16 or fp32")
        return
    vocabulary, hidden = config.get("vocab_size"), config.get("hidden_size", config.get("n_embd"))
    for name, tensor in tensors.items():
        shape = tensor["shape"]
        if _EMBEDDING.search(name) and len(shape) == 2 and isinstance(vocabulary, int) and shape[0] != vocabulary:
            yield Finding(
                f"{name} has {shape[0]} rows, config.json says vocab_size {vocabulary}",
                "weights and configuration are of two models",
                f"set vocab_size {shape[0]} if the tokenizer belongs to these weights",
            )
        elif (
            name.endswith("embed_tokens.weight")
            and len(shape) == 2
            and isinstance(hidden, int)
            and shape[1] != hidden
        ):
            yield Finding(f"{name} has {shape[1]} columns, config.json says hidden_size {hidden}")
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    there = {int(match.group(1)) for name in tensors if (match := _LAYER.search(name))}
    if isinstance(layers, int) and there:
        lost = sorted(set(range(layers)) - there)
        if lost:
            shown = ", ".join(str(n) for n in lost[:5]) + (", ..." if len(lost) > 5 else "")
            why = f"config.json says num_hidden_layers {layers}, the weights have {len(there)}"
            yield Finding(f"no weights for layer {shown}", why, "download the model again")
        elif max(there) >= layers and not config.get("num_nextn_predict_layers"):
            why = f"config.json says num_hidden_layers {layers}: the others would be left out"
            yield Finding(f"weights for {max(there) + 1} layers", why, f"set num_hidden_layers {max(there) + 1}")
