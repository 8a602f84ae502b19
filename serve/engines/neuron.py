"""Engine `neuron`: transformers-neuronx 0.12 with continuous batching. The only file that imports it.

The scheduler decides what each graph execution computes; this file sends it. How the library takes what it is sent
was recorded from its source: tests/tnx/table.json, docs/internals/neuron-serving.md.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from containers.artifact import ArtifactError, CompileKey, find_compiled, sha256_of
from containers.families import serving_problems
from serve.compilers import to_device
from serve.engines.common import end_tokens, repetition_penalty
from serve.options import ServeOptions
from serve.scheduler import Shapes, Step, shapes

AMP = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
CACHE_ENV = "NEURON_COMPILE_CACHE_URL"
SHIPPED_CACHE = "neuron-compile-cache"


class NeuronEngine:
    """A causal language model on NeuronCores. One caller at a time.

    What is sent keeps to what transformers-neuronx 0.12 does with it (tests/tnx/table.json):
    - A prompt goes alone and at its own length: the library pads right to the bucket, and takes the last token's
      place from the largest cache id. Several prompts in one call would run one after the other all the same.
    - A decode step names every running sequence, in order of slots: the token graph runs all slots, one that is not
      named gets token 0 written at its position 0, and with every slot named the library returns rows in that order
      whatever start_ids says.
    """

    prompt_logprobs = False  # the context graph gives the last token's logits alone; others would be further graphs

    def __init__(self, model: Any, tokenizer: Any, model_dir: Path, options: ServeOptions, description: str) -> None:
        self.model, self.tokenizer, self.description = model, tokenizer, description
        self.shapes = shapes(options.n_positions, options.max_batch_size)
        self.ends = end_tokens(model_dir, tokenizer)
        self.repetition_penalty = repetition_penalty(model_dir)

    def forward(self, step: Step) -> NDArray[np.float32]:
        """Execute one graph."""
        with torch.inference_mode():
            # One type for all three: the library scatters cache ids into a tensor of the type of the token ids.
            logits = self.model.forward(
                input_ids=torch.tensor([row.tokens for row in step.rows], dtype=torch.int64),
                cache_ids=torch.tensor([list(range(row.start, row.end)) for row in step.rows], dtype=torch.int64),
                start_ids=torch.tensor([row.slot for row in step.rows], dtype=torch.int64),
            )
        # Every row is sampled: this engine reads prompts whole. A copy: the scheduler's choice writes into it.
        found: NDArray[np.float32] = np.array(logits.float().numpy())
        return found

    def forward_all(self, prompts: list[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        raise NotImplementedError("no graph for it")


def load(model_dir: Path, options: ServeOptions) -> NeuronEngine:
    """Read the artifact in `model_dir`, with its compiled graphs if it was prepared; else compile, in minutes.

    Raises ArtifactError if it was prepared for other options or versions: compiling anew would outlast the start-up
    window of an endpoint.
    """
    compiled = find_compiled(model_dir, compile_key(model_dir, options))
    model = build(model_dir, options)
    if compiled is None:
        print(f"engine neuron: {model_dir} is not prepared; compiling, which takes minutes", flush=True)
        description = "engine neuron: compiled at start"
    else:
        description = f"engine neuron: compiled graphs from {compiled}"
    to_device(model, compiled)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return NeuronEngine(model, tokenizer, model_dir, options, f"{description}; {options.dtype}, sampling on the host")


def build(model_dir: Path, options: ServeOptions) -> Any:
    """The model with its shapes, weights not yet on the device. Safetensors (whole or sharded), split or pickled."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    if wrong := serving_problems(config, tp_degree=options.tp_degree, n_positions=options.n_positions):
        raise ArtifactError("; ".join(wrong))
    move_cache(model_dir, os.environ)
    # Imported once the environment is right: the compiler's cache reads it.
    import transformers_neuronx as tnx  # type: ignore[import-not-found, unused-ignore]

    sizes = shapes(options.n_positions, options.max_batch_size)
    batching = tnx.ContinuousBatchingConfig(batch_size_for_shared_caches=sizes.slots)
    # A misspelt keyword would be ignored in silence: Llama's constructor takes any (tests/tnx/table.json).
    return tnx.NeuronAutoModelForCausalLM.from_pretrained(
        str(model_dir),
        tp_degree=options.tp_degree,
        n_positions=list(sizes.token_buckets),
        context_length_estimate=list(sizes.context_buckets),
        batch_size=sizes.slots,
        amp=AMP[options.dtype],
        neuron_config=tnx.NeuronConfig(continuous_batching=batching),
    )


def compile_key(model_dir: Path, options: ServeOptions) -> CompileKey:
    """What the compiled graphs of this artifact depend on, under these options and in this image."""
    sizes: Shapes = shapes(options.n_positions, options.max_batch_size)
    return CompileKey(
        config_sha256=sha256_of(model_dir / "config.json"),
        dtype=options.dtype,
        tp_degree=options.tp_degree,
        slots=sizes.slots,
        token_buckets=list(sizes.token_buckets),
        context_buckets=list(sizes.context_buckets),
        versions={name: _version(name) for name in ("transformers-neuronx", "neuronx-cc")},
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def move_cache(model_dir: Path, environ: MutableMapping[str, str]) -> None:
    """Keep the compiler's cache out of the model directory, which is read-only: it takes locks and writes there.

    A cache that came with the model is copied to a writable place, so that it still saves the compilation. One that
    is set to somewhere else, or to S3, stays.
    """
    url = environ.get(CACHE_ENV, "")
    inside = model_dir.resolve()
    if url and ("://" in url or inside not in Path(url).resolve().parents):
        return
    shipped = Path(url) if url else model_dir / SHIPPED_CACHE
    target = Path(tempfile.gettempdir()) / SHIPPED_CACHE
    for file in shipped.rglob("*"):
        if file.is_file() and file.suffix != ".lock":
            copy = target / file.relative_to(shipped)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    environ[CACHE_ENV] = str(target)
