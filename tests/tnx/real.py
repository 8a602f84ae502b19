"""The real transformers-neuronx host code on the stand-in device, for whoever has the source.

`real.install(source)` imports the package from SOURCE/src with the closed packages stubbed, and replaces what needs
the device: reading weights onto it, the compiler, the graphs. Everything else that runs is the real code.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch

from tests.tnx.device import Device, Hosted, Kernel

CLOSED = ("torch_neuronx", "libneuronxla", "neuronxcc", "torch_xla")


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any module of the closed packages is an empty one whose names are mocks."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in CLOSED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        class Stub(ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__") and name != "__version__":
                    raise AttributeError(name)
                return MagicMock(name=f"{self.__name__}.{name}")

        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class IdEmbedding(torch.nn.Module):
    """Token ids as vectors of one number, so that the device sees which tokens it was sent."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.unsqueeze(-1)


def install(source: Path, make_device: Any = None) -> ModuleType:  # noqa: C901 (a list of replacements)
    """Import the package; its models run on `make_device(model)`, by default the model of their directory."""
    sys.meta_path.insert(0, _Stubs())
    sys.path.insert(0, str(source / "src"))
    tnx = importlib.import_module("transformers_neuronx")
    base = importlib.import_module("transformers_neuronx.base")
    decoder = importlib.import_module("transformers_neuronx.decoder")
    module = importlib.import_module("transformers_neuronx.module")

    class Program:
        """DecoderProgram without its device: buckets by the real rule, execution by the stand-in."""

        def __init__(self, tag: str, head: Any, device: Device, facts: str) -> None:
            self.n_positions_list, self.batch_sizes = head.n_positions_list, head.batch_size
            self.tag, self.device = tag, device
            sizes = [(n, b) for n in self.n_positions_list for b in self.batch_sizes]
            self.kernels = {(n, b): Kernel(f"{facts} {tag} {n} {b}") for n, b in sizes}

        find_bucket_id = decoder.DecoderProgram.find_bucket_id
        get_kernels = decoder.DecoderProgram.get_kernels

        def execute(self, bucket_id: int, batch_size: int, *inputs: torch.Tensor, return_ranks: int = -1) -> Any:
            hidden, *rest = inputs
            return self.device.run(self.tag, self.n_positions_list[bucket_id], hidden[0].T, *rest)

        def debug_tensors_to_host(self, *_: Any) -> None:
            pass

    def load_weights(self: Any) -> None:
        device = (make_device or _device_of)(self)
        self.device = device
        facts = f"{_hidden(self.config)} {self.decoder_lm_head.batch_size} {self.config.amp} {self.config.tp_degree}"
        _embed_ids(self)
        heads = [
            ("token", self.decoder_lm_head),
            *(("context", h) for h in self.decoder_lm_head_for_context.values()),
        ]
        for tag, head in heads:
            head.inputs_sdim, head.use_executor = (1, 1, None, 0), True
            head.program = Program(tag, head, device, facts)
        # GPT-2 only: after each prompt, its share of the cache goes to every slot (decoder.py, FastCacheBroadcaster).
        for broadcaster in getattr(self, "broadcaster", {}).values():
            broadcaster.run_broadcast = device.broadcast
            self.tensor_pool = importlib.import_module("transformers_neuronx.tensor_pool").TensorPool()

    def compile_here(self: Any, parallel_degree: int | None = None) -> None:
        for kernel in self._get_all_kernels():
            kernel.neff_bytes = kernel.compile()

    def remember(original: Any) -> Any:
        def load_state_dict_dir(self: Any, folder: str) -> None:
            self.folder = folder
            original(self, folder)

        return load_state_dict_dir

    for model_class in set(tnx.modeling_auto.NEURON_MODEL_FOR_CAUSAL_LM_MAPPING.values()):
        if issubclass(model_class, base.NeuronModelBase):
            model_class.load_weights = load_weights
    base.NeuronModelBase.compile = compile_here
    base.NeuronModelBase.setup = lambda self: None
    wrapping = module.WrappingCheckpointCompatibleModel
    wrapping.load_state_dict_dir = remember(wrapping.load_state_dict_dir)
    return tnx


# Where each family keeps its embedding of tokens, and what else it adds to it before the device.
EMBEDDINGS = {
    "OPTForSampling": ("model.decoder", "embed_tokens", "embed_positions"),
    "BloomForSampling": ("transformer", "word_embeddings", "word_embeddings_layernorm"),
    "GPT2ForSamplingWithContextBroadcasting": ("transformer", "wte", "wpe"),
}


class Zero(torch.nn.Module):
    """Positions add nothing to the numbers that stand for token ids."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(positions).unsqueeze(-1)


def _embed_ids(model: Any) -> None:
    """Send the device token ids in the place of their embeddings."""
    path, tokens, *others = EMBEDDINGS.get(type(model).__name__, ("model", "embed_tokens"))
    holder = model.chkpt_model
    for name in path.split("."):
        holder = getattr(holder, name)
    holder._modules[tokens] = IdEmbedding()
    for name in others:
        holder._modules[name] = torch.nn.Identity() if name.endswith("layernorm") else Zero()


def _hidden(config: Any) -> int:
    return int(getattr(config, "hidden_size", None) or config.n_embd)


def _device_of(model: Any) -> Device:
    return Hosted(model.decoder_lm_head.batch_size[0], max(model.token_buckets), Path(model.folder), model.config.amp)
