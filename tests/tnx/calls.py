"""Every way in which the engine, or its reader, might call transformers-neuronx, and what comes of it.

`outcomes(tnx, folder)` makes the same calls on whatever package it is given. record_table.py keeps what the real
source answers; the test makes the double answer the same. A refusal is its exact exception type.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from tests.tnx.device import WIDTH, Kernel

SIGNATURES = (
    "NeuronAutoModelForCausalLM.from_pretrained",
    "LlamaForSampling.__init__",
    "LlamaForSampling.forward",
    "LlamaForSampling.sample",
    "LlamaForSampling.to_neuron",
    "LlamaForSampling.load",
    "LlamaForSampling.save",
    "NeuronConfig.__init__",
    "ContinuousBatchingConfig.__init__",
    "module.save_pretrained_split",
)
LARGE = 512  # positions of the model in `layouts`
BUCKETS: dict[str, Any] = {"n_positions": [32, 64], "context_length_estimate": [16, 32, 64]}


def signatures(tnx: Any, names: Iterable[str] = SIGNATURES) -> dict[str, list[list[Any]]]:
    """name -> [parameter, kind, default] of each parameter."""
    found = {}
    for path in names:
        target = tnx
        for name in path.split("."):
            target = getattr(target, name)
        found[path] = [[p.name, p.kind.name, _default(p)] for p in inspect.signature(target).parameters.values()]
    return found


def _default(p: inspect.Parameter) -> Any:
    return "(none)" if p.default is p.empty else getattr(p.default, "value", p.default)


def _try(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 (which one is the finding)
        return type(error).__name__


def outcomes(tnx: Any, folder: Path, work: Path) -> dict[str, Any]:
    """Run every group of calls on the Llama in `folder`; `work` is an empty directory."""
    return {
        "configs": configs(tnx),
        "from_pretrained": layouts(tnx, folder),
        "weights": weights(tnx, folder, work),
        "artifacts": artifacts(tnx, folder, work),
        "forward": forwards(tnx, folder),
    }


def configs(tnx: Any) -> dict[str, Any]:
    shared = tnx.ContinuousBatchingConfig(batch_size_for_shared_caches=4)
    batching = {
        "nothing": {},
        "batch_size_for_shared_caches": {"batch_size_for_shared_caches": 4},
        "max_num_seqs": {"max_num_seqs": 4},
        "both": {"max_num_seqs": 4, "batch_size_for_shared_caches": 4},
        "max_model_len": {"max_num_seqs": 4, "max_model_len": 64},
        "enable_chunked_prefill": {"max_num_seqs": 4, "enable_chunked_prefill": True},
    }
    neuron = {
        "nothing": {},
        "continuous_batching": {"continuous_batching": shared},
        "left padding asked for": {"continuous_batching": shared, "padding_side": "left"},
        "padding_side middle": {"padding_side": "middle"},
        "cast_logits_dtype bf16": {"cast_logits_dtype": "bf16"},
        "cast_logits_dtype bfloat16": {"cast_logits_dtype": "bfloat16"},
        "qkv_tiling alone": {"qkv_tiling": True},
        "qkv_tiling, fuse_qkv": {"qkv_tiling": True, "fuse_qkv": True},
        "unknown": {"continous_batching": shared},
    }
    made = {k: _try(lambda k=k: tnx.ContinuousBatchingConfig(**batching[k]).max_num_seqs) for k in batching}
    sides = {k: _try(lambda k=k: tnx.NeuronConfig(**neuron[k]).padding_side) for k in neuron}
    return {"ContinuousBatchingConfig.max_num_seqs": made, "NeuronConfig.padding_side": sides}


def make(tnx: Any, folder: Path, slots: int = 4, **changed: Any) -> Any:
    """The model as the engine makes it, but for `changed` keywords (None drops one)."""
    config = tnx.NeuronConfig(continuous_batching=tnx.ContinuousBatchingConfig(batch_size_for_shared_caches=slots))
    given = {"tp_degree": 1, "batch_size": slots, "amp": "f32", **BUCKETS, "neuron_config": config, **changed}
    return tnx.NeuronAutoModelForCausalLM.from_pretrained(
        str(folder), **{k: v for k, v in given.items() if v is not None}
    )


def layouts(tnx: Any, folder: Path) -> dict[str, Any]:
    cases: dict[str, dict[str, Any]] = {
        "as the engine": {},
        "batch_size differs": {"batch_size": 3},
        "batch_size left out": {"batch_size": None},
        "no neuron_config": {"neuron_config": None},
        "n_positions whole": {"n_positions": LARGE},
        "n_positions small": {"n_positions": 64},
        "unsorted buckets": {"n_positions": [64, 32], "context_length_estimate": [64, 16]},
        "context left out": {"context_length_estimate": None},
        "context 0": {"context_length_estimate": 0},
        "context over n_positions": {"context_length_estimate": [128]},
        "amp bf16": {"amp": "bf16"},
        "amp f16": {"amp": "f16"},
        "amp bfloat16": {"amp": "bfloat16"},
        "heads not divisible by tp": {"tp_degree": 3},
        "unknown keyword": {"n_position": 32},
        "one slot": {"slots": 1},
    }

    def layout(change: dict[str, Any]) -> list[Any]:
        model = make(tnx, folder, **change)
        return [model.token_buckets, model.context_buckets, model.batch_sizes, model.context_batch_sizes]

    return {k: _try(lambda k=k: layout(cases[k])) for k in cases}


def weights(tnx: Any, folder: Path, work: Path) -> dict[str, Any]:
    """Forms of a checkpoint, and configurations that are no Llama the library knows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    forms: dict[str, Callable[[Path], Any]] = {
        "safetensors": model.save_pretrained,
        "sharded safetensors": lambda p: model.save_pretrained(p, max_shard_size="100KB"),
        "pickle": lambda p: model.save_pretrained(p, safe_serialization=False),
        "split": lambda p: tnx.module.save_pretrained_split(model, str(p)),
        "none": model.config.save_pretrained,
        "rope scaling linear": lambda p: _with(model, p, rope_scaling={"type": "linear", "factor": 2.0}),
        "model type phi": lambda p: _with(model, p, model_type="phi"),
    }
    found = {}
    for name, write in forms.items():
        place = work / "weights" / name.replace(" ", "-")
        write(place)
        files = sorted("pytorch_model.bin/" if p.is_dir() else p.suffix for p in place.iterdir())
        found[name] = [sorted(set(files)), _try(lambda place=place: make(tnx, place).batch_sizes)]
    return found


def _with(model: Any, folder: Path, **changes: Any) -> None:
    import json

    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def artifacts(tnx: Any, folder: Path, work: Path) -> dict[str, Any]:
    """save, load, to_neuron in right and wrong order."""
    place, file = work / "compiled", work / "file"
    file.write_text("")
    found: dict[str, Any] = {}

    def compiles(model: Any) -> int:
        before = Kernel.compiled
        model.to_neuron()
        return Kernel.compiled - before

    fresh = make(tnx, folder)
    found["save before to_neuron"] = _try(lambda: fresh.save(str(work / "early")))
    shutil.rmtree(work / "early", ignore_errors=True)
    found["to_neuron compiles"] = _try(lambda: compiles(fresh))
    found["save"] = _try(lambda: fresh.save(str(place)))
    found["files"] = [len(list(place.iterdir())), *sorted({p.suffix for p in place.iterdir()})]
    found["save to a file"] = _try(lambda: fresh.save(str(file)))
    found["save sharded_weights without on_device_embedding"] = _try(lambda: fresh.save(str(place), True))
    for name, changed in {
        "the same": {},
        "other buckets": {"n_positions": [64]},
        "other amp": {"amp": "bf16"},
    }.items():
        model = make(tnx, folder, **changed)
        found[f"load, then to_neuron compiles: {name}"] = _try(
            lambda model=model: (model.load(str(place)), compiles(model))[1]
        )
    fewer = make(tnx, folder, context_length_estimate=[16])
    found["load, then to_neuron compiles: some of the graphs"] = _try(
        lambda: (fewer.load(str(place)), compiles(fewer))[1]
    )
    late = make(tnx, folder)
    found["to_neuron, then load compiles"] = _try(lambda: (compiles(late), late.load(str(place)))[0])
    missing = make(tnx, folder)
    found["load of a missing directory"] = _try(lambda: missing.load(str(work / "missing")))
    found["then to_neuron"] = _try(lambda: compiles(missing))
    return found


Call = tuple[list[list[int]], Any, Any]
PREFILL: dict[str, Call] = {
    "one prompt": ([[5, 6, 7]], [[0, 1, 2]], [2]),
    "exactly a bucket": ([list(range(1, 17))], [list(range(16))], [1]),
    "one more than a bucket": ([list(range(1, 18))], [list(range(17))], [1]),
    "the largest bucket": ([[3] * 64], [list(range(64))], [0]),
    "more than the largest bucket": ([[3] * 65], [list(range(65))], [0]),
    "two, right padded": ([[5, 6, 7], [8, 9, 0]], [[0, 1, 2], [0, 1, 0]], [3, 0]),
    "two, the longer a bucket": ([[5] * 16, [8] * 3 + [0] * 13], [list(range(16)), [0, 1, 2] + [0] * 13], [0, 1]),
    "padded to the bucket, cache_ids zero": ([[5, 6, 7] + [0] * 13], [[0, 1, 2] + [0] * 13], [2]),
    "padded to the bucket, cache_ids counted on": ([[5, 6, 7] + [0] * 13], [list(range(16))], [2]),
    "left padded": ([[0, 5, 6]], [[0, 0, 1]], [2]),
    "cache_ids not from 0": ([[5, 6, 7]], [[3, 4, 5]], [2]),
    "cache_ids of one dimension": ([[5, 6, 7]], [0, 1, 2], [2]),
    "no cache_ids": ([[5, 6, 7]], None, [2]),
    "no start_ids": ([[5, 6, 7]], [[0, 1, 2]], None),
    "slot out of range": ([[5, 6, 7]], [[0, 1, 2]], [4]),
    "one token": ([[5]], [[0]], [1]),
}
DECODE: dict[str, Call] = {
    "all": ([[1], [2], [3], [4]], [[5], [6], [7], [8]], [0, 1, 2, 3]),
    "all, another order": ([[1], [2], [3], [4]], [[5], [6], [7], [8]], [3, 1, 2, 0]),
    "some": ([[1], [2]], [[5], [6]], [1, 3]),
    "the first two": ([[1], [2]], [[5], [6]], [0, 1]),
    "some, another order": ([[1], [2]], [[5], [6]], [3, 1]),
    "the same slot twice": ([[1], [2]], [[5], [6]], [1, 1]),
    "bucket's last position": ([[1]], [[31]], [1]),
    "first position of the next bucket": ([[1]], [[32]], [1]),
    "last position": ([[1]], [[63]], [1]),
    "past the last position": ([[1]], [[64]], [1]),
    "cache_ids of one dimension": ([[1]], [5], [1]),
    "start_ids of two dimensions": ([[1]], [[5]], [[1]]),
    "no start_ids": ([[1]], [[5]], None),
    "slot out of range": ([[1]], [[5]], [4]),
}
TYPES = {
    "all int64": (torch.int64, torch.int64, torch.int64),
    "all int32": (torch.int32, torch.int32, torch.int32),
    "cache_ids int32": (torch.int64, torch.int32, torch.int64),
    "start_ids int32": (torch.int64, torch.int64, torch.int32),
}


def forwards(tnx: Any, folder: Path) -> dict[str, Any]:
    """forward on an Echo device: what each graph was sent, and which slot (and how many tokens) each row is of."""
    model = make(tnx, folder)
    model.to_neuron()

    def one(call: Call, types: tuple[Any, Any, Any]) -> Any:
        given = [None if v is None else torch.tensor(v, dtype=t) for v, t in zip(call, types, strict=True)]
        model.device.trace.clear()
        answer = _try(lambda: [divmod(int(i), WIDTH) for i in model.forward(*given).argmax(dim=1)])
        rows = answer if isinstance(answer, str) else [{"slot": slot, "read": read} for slot, read in answer]
        return {"rows": rows, "graphs": list(model.device.trace)}

    whole = TYPES["all int64"]
    return {
        "prefill": {k: one(v, whole) for k, v in PREFILL.items()},
        "decode": {k: one(v, whole) for k, v in DECODE.items()},
        "types, prefill": {k: one(PREFILL["one prompt"], v) for k, v in TYPES.items()},
        "types, decode": {k: one(DECODE["some"], v) for k, v in TYPES.items()},
        "by keyword": _try(
            lambda: list(
                model.forward(
                    input_ids=torch.tensor([[5, 6]]), cache_ids=torch.tensor([[0, 1]]), start_ids=torch.tensor([0])
                ).shape
            )
        ),
    }
