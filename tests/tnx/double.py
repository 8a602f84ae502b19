"""A behaving double of transformers-neuronx 0.12: its host part, for continuous batching of a Llama.

It does to a call what the real host code does (refuses it, pads it, sends it to which graph) as far as table.json
says, and computes on the same stand-in device. tests/tnx/test_engine_neuron.py holds it against the table.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.tnx.device import AMP, Device, Hosted, Kernel, read_weights

TABLE = json.loads((Path(__file__).resolve().parent / "table.json").read_text(encoding="utf-8"))
_NEURON_KEYWORDS = {p[0]: p[2] for p in TABLE["signatures"]["NeuronConfig.__init__"] if p[1] == "KEYWORD_ONLY"}
SUPPORTED = ("bloom", "code_llama", "gpt2", "gpt_neox", "gptj", "llama", "mistral", "mixtral", "opt")


class ContinuousBatchingConfig:
    def __init__(self, **kwargs: Any) -> None:
        # The newer name wins; the older one, left over, is then refused like any unknown word.
        name = "max_num_seqs" if kwargs.get("max_num_seqs") is not None else "batch_size_for_shared_caches"
        self.max_num_seqs = self.batch_size_for_shared_caches = kwargs.pop(name)
        unknown = set(kwargs) - {"max_model_len", "optimized_paged_attention"}
        assert not unknown, f"unknown: {unknown}"


class NeuronConfig:
    def __init__(self, **kwargs: Any) -> None:
        unknown = set(kwargs) - set(_NEURON_KEYWORDS)
        assert not unknown, f"unknown: {unknown}"
        values = {**_NEURON_KEYWORDS, **kwargs}
        assert values["padding_side"] in ("left", "right")
        assert values["cast_logits_dtype"] in ("float32", "float16", "bfloat16")
        assert values["fuse_qkv"] or not values["qkv_tiling"]
        self.continuous_batching = values["continuous_batching"]
        self.padding_side = "right" if self.continuous_batching else values["padding_side"]


class LlamaForSampling:
    make_device: Callable[[Any], Device] | None = None

    def __init__(
        self,
        config: Any,
        *,
        n_positions: Any = 2048,
        batch_size: Any = 1,
        amp: str = "f32",
        tp_degree: int = 2,
        context_length_estimate: Any = None,
        context_unroll: Any = None,
        unroll: Any = None,
        neuron_config: Any = None,
        prefixed_length: int = 0,
        **kwargs: Any,
    ) -> None:
        scaling = config.rope_scaling or {}
        if scaling.get("rope_type", scaling.get("type", "default")) not in ("default", "llama3"):
            raise ValueError(f"rope scaling {scaling}")
        AMP[amp]  # KeyError for what is not an amp
        self.config, self.amp, self.tp_degree = config, amp, tp_degree
        self.neuron_config = neuron_config or NeuronConfig()
        self.token_buckets = sorted(n_positions) if isinstance(n_positions, list) else _doubling(n_positions)
        self.context_buckets = _context_buckets(context_length_estimate, self.token_buckets)
        self.batch_sizes = [batch_size]
        self.context_batch_sizes = [1] if self.neuron_config.continuous_batching else self.batch_sizes
        self.kernels: list[Kernel] | None = None
        self.compiled: Path | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str, *model_args: Any, **kwargs: Any) -> LlamaForSampling:
        from transformers import AutoConfig

        batching = kwargs["neuron_config"].continuous_batching if kwargs.get("neuron_config") else None
        assert not batching or batching.max_num_seqs == kwargs.get("batch_size"), "slots differ from batch_size"
        model = cls(AutoConfig.from_pretrained(pretrained_model_path), *model_args, **kwargs)
        model.folder = Path(pretrained_model_path)
        read_weights(model.folder)
        return model

    folder: Path
    device: Device

    def load(self, directory: str) -> None:
        self.compiled = Path(directory)

    def save(self, directory: str, sharded_weights: bool = False) -> None:
        place = Path(directory)
        if place.is_file():
            raise FileExistsError(place)
        place.mkdir(parents=True, exist_ok=True)
        if self.kernels is None:
            raise AttributeError("nothing is built before to_neuron")
        for kernel in self.kernels:
            (place / _file_of(kernel)).write_bytes(kernel.neff_bytes or b"")
        assert not sharded_weights, "on_device_embedding is off"

    def load_weights(self) -> None:
        self.device = (type(self).make_device or _device_of)(self)
        facts = f"{self.config.hidden_size} {self.batch_sizes} {self.amp} {self.tp_degree}"
        graphs = [("token", n) for n in self.token_buckets] + [("context", n) for n in self.context_buckets]
        self.kernels = [Kernel(f"{facts} {tag} {n}") for tag, n in graphs]

    def _get_all_kernels(self) -> list[Kernel]:
        assert self.kernels is not None, "there are none before load_weights"
        return self.kernels

    def compile(self, parallel_degree: int | None = None) -> None:
        assert parallel_degree is None or parallel_degree > 0, "ProcessPoolExecutor takes no fewer than one"
        type(self).compilers = parallel_degree or len(self._get_all_kernels())
        for kernel in self._get_all_kernels():
            kernel.neff_bytes = kernel.compile()

    compilers = 0
    """How many at once, in the last compile."""

    def setup(self) -> None:
        """Graphs go to the device."""

    def to_neuron(self) -> None:
        self.load_weights()
        if self.compiled is None:
            self.compile()
        for kernel in self._get_all_kernels() if self.compiled is not None else ():
            # A directory that lacks a graph is no reason to compile it: FileNotFoundError.
            kernel.neff_bytes = (self.compiled / _file_of(kernel)).read_bytes()
        self.setup()

    def sample(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the engine samples on the host")

    def forward(
        self,
        input_ids: torch.Tensor,
        cache_ids: Any = None,
        start_ids: Any = None,
        last_token_id: Any = None,
        input_embeddings: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        run = self._prefill if input_ids.shape[1] > 1 else self._decode
        return run(input_ids, cache_ids, start_ids)[:, : self.config.vocab_size]

    def _prefill(self, ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: Any) -> torch.Tensor:
        rows, width = ids.shape
        starts = torch.zeros(rows, dtype=torch.int32) if start_ids is None else start_ids
        assert cache_ids.flatten()[0] == 0, "positions that do not begin at 0 mean speculation, which is not built"
        assert cache_ids.shape[0] == rows
        bucket = next((b for b in self.context_buckets if b >= width), None)
        assert bucket, f"{width} tokens are more than the largest bucket"
        last = cache_ids.max(dim=1).values
        padded = torch.zeros(rows, bucket, dtype=ids.dtype)
        padded[:, :width] = ids
        # Positions of a padded call are counted anew; one of bucket width is believed.
        places = cache_ids if width == bucket else torch.arange(bucket).expand(rows, bucket)
        columns = [
            self.device.run(
                "context", bucket, padded[i : i + 1], places[i : i + 1], starts[i : i + 1], last[i : i + 1]
            )
            for i in range(rows)
        ]
        return _rows(torch.cat(columns, dim=2))

    def _decode(self, ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: Any) -> torch.Tensor:
        slots = self.batch_sizes[0]
        if start_ids is None:
            starts = torch.zeros(len(ids), dtype=torch.int32)
        else:
            starts, place = torch.arange(slots), start_ids.reshape(-1, 1).long()
            ids = torch.zeros(slots, 1, dtype=ids.dtype).scatter_(0, place, ids)
            cache_ids = torch.zeros(slots, 1, dtype=ids.dtype).scatter_(0, place, cache_ids)
        size = next(n for n in self.token_buckets if n > int(cache_ids.max()))
        rows = _rows(self.device.run("token", size, ids, cache_ids, starts, torch.zeros(len(ids)).int()))
        # With as many rows as slots, they come by slot in whatever order they were named.
        return rows if start_ids is None or len(start_ids) == slots else rows[start_ids.flatten().long()]


class MistralForSampling(LlamaForSampling):
    """Mistral and Mixtral: the same host code; positions that are scaled are not looked at."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        config.rope_scaling = None
        super().__init__(config, **kwargs)


class WithoutSharedCaches(LlamaForSampling):
    """OPT and BLOOM: no prompt graph of one slot, so the first prompt of a shared cache ends it."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        config.rope_scaling = None
        super().__init__(config, **kwargs)

    def _prefill(self, ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: Any) -> torch.Tensor:
        raise AssertionError(f"{type(self)} doesn't support dynamic batching.")


class GPT2ForSampling(WithoutSharedCaches):
    """GPT-2: a prompt goes to every slot, and a decode step is not filled up to all slots."""

    def _prefill(self, ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: Any) -> torch.Tensor:
        logits = LlamaForSampling._prefill(self, ids, cache_ids, torch.zeros(1, dtype=torch.int64))
        self.device.broadcast()
        return logits

    def _decode(self, ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: Any) -> torch.Tensor:
        size = self.token_buckets[0]
        return _rows(self.device.run("token", size, ids, cache_ids, start_ids, torch.zeros(len(ids)).int()))


CLASSES = {"mistral": MistralForSampling, "mixtral": MistralForSampling, "gpt2": GPT2ForSampling}
CLASSES |= {"opt": WithoutSharedCaches, "bloom": WithoutSharedCaches}


class NeuronAutoModelForCausalLM:
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *model_args: Any, **kwargs: Any) -> Any:
        kind = json.loads((Path(pretrained_model_name_or_path) / "config.json").read_text())["model_type"]
        assert kind in SUPPORTED, f"{kind} is not supported"
        if kind in ("gpt_neox", "gptj"):
            raise KeyError("context_length_estimate")  # their constructors are of an older kind
        return CLASSES.get(kind, LlamaForSampling).from_pretrained(
            pretrained_model_name_or_path, *model_args, **kwargs
        )


def save_pretrained_split(model: Any, save_directory: str) -> None:
    """One file a tensor in pytorch_model.bin/, and an index of them."""
    folder = Path(save_directory) / "pytorch_model.bin"
    folder.mkdir(parents=True)
    model.config.save_pretrained(save_directory)
    model.generation_config.save_pretrained(save_directory)
    names = {key: f"p{i}.{key}" for i, key in enumerate(model.state_dict())}
    (folder / "key_to_filename.json").write_text(json.dumps(names))
    for key, tensor in model.state_dict().items():
        torch.save(tensor, folder / names[key])


def _rows(logits: torch.Tensor) -> torch.Tensor:
    """Device logits (vocabulary, 1, rows) as (rows, vocabulary)."""
    return logits[:, -1, :].T


def _doubling(largest: int) -> list[int]:
    sizes = [n for n in (128 << i for i in range(20)) if n < largest]
    return [*sizes, largest]


def _context_buckets(wanted: Any, token_buckets: list[int]) -> list[int]:
    if isinstance(wanted, list):
        return sorted(wanted)
    if wanted is None:
        return [n // 2 for n in token_buckets]
    return [wanted] if wanted > 0 else []


def _file_of(kernel: Kernel) -> str:
    import hashlib

    return hashlib.sha256(kernel.hlo_module.SerializeToString()).hexdigest()[:20] + ".neff"


def _device_of(model: LlamaForSampling) -> Device:
    return Hosted(model.batch_sizes[0], max(model.token_buckets), model.folder, model.amp)


def install(make_device: Callable[[Any], Device] | None = None) -> types.ModuleType:
    """Make `import transformers_neuronx` give the double, on `make_device(model)`."""
    tnx = types.ModuleType("transformers_neuronx")
    LlamaForSampling.make_device = staticmethod(make_device) if make_device else None  # type: ignore[assignment]
    for item in (ContinuousBatchingConfig, NeuronConfig, LlamaForSampling, NeuronAutoModelForCausalLM):
        setattr(tnx, item.__name__, item)
    tnx.module = types.SimpleNamespace(save_pretrained_split=save_pretrained_split)  # type: ignore[attr-defined]
    sys.modules["transformers_neuronx"] = tnx
    return tnx
