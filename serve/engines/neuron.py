"""Engine `neuron`: transformers-neuronx 0.12 with continuous batching. The only file that imports it.

The scheduler decides what each graph execution is sent; this file carries it out and turns tokens into text. How the
library takes what it is sent was recorded from its source: tests/tnx/table.json, docs/neuron-serving.md.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence as Items
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from containers.artifact import ArtifactError, CompileKey, find_compiled, sha256_of
from containers.families import serving_problems
from serve import sampling
from serve.compilers import to_device
from serve.options import ServeOptions
from serve.protocols.errors import RequestError
from serve.protocols.lmi import Generation, Parameters
from serve.scheduler import Scheduler, Sequence, Shapes, cut, settled, shapes

AMP = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
CACHE_ENV = "NEURON_COMPILE_CACHE_URL"
SHIPPED_CACHE = "neuron-compile-cache"


@dataclass(eq=False)
class Job:
    """One prompt on its way to an answer."""

    sequence: Sequence
    parameters: Parameters
    chance: np.random.Generator | None
    text: str = ""
    reason: str = ""
    """Why it ended; empty while it goes on."""
    kept: list[int] = field(default_factory=list)
    """The tokens of the text: without the one that ended it."""
    context: int = 0
    read: int = 0
    """The text says kept[:read]; what comes next is decoded after kept[context:read], as spaces depend on it."""

    def answer(self) -> Generation:
        return Generation(self.text, self.reason, len(self.sequence.prompt), len(self.sequence.generated))


class NeuronEngine:
    """A causal language model on NeuronCores, for one caller at a time.

    `generate` and `stream` are loops over `submit`, `step` and `cancel`, which also let requests join mid-way.
    """

    def __init__(self, model: Any, tokenizer: Any, ends: frozenset[int], options: ServeOptions) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ends = ends
        self.options = options
        self.scheduler = Scheduler(shapes(options.n_positions, options.max_batch_size))
        self._jobs: dict[Sequence, Job] = {}

    def generate(self, prompts: Items[str], parameters: Parameters) -> list[Generation]:
        jobs = self.submit(prompts, parameters)
        try:
            while not all(job.reason for job in jobs):
                self.step()
        finally:
            self.cancel(jobs)
        return [job.answer() for job in jobs]

    def stream(self, prompt: str, parameters: Parameters) -> Iterator[str | Generation]:
        jobs = self.submit([prompt], parameters)
        (job,) = jobs
        shown = 0
        try:
            while not job.reason:
                self.step()
                text = job.text if job.reason else settled(job.text, parameters.stop)
                if len(text) > shown:
                    yield text[shown:]
                    shown = len(text)
            yield job.answer()
        finally:  # also when the reader goes away
            self.cancel(jobs)

    def submit(self, prompts: Items[str], parameters: Parameters) -> list[Job]:
        """Queue prompts; they advance with every `step`. Raises RequestError 422 for what does not fit."""
        limit = self.options.n_positions
        if len(prompts) > self.options.max_batch_size:
            raise RequestError(
                422,
                f"{len(prompts)} inputs; max_batch_size is {self.options.max_batch_size}: send them in parts",
            )
        encoded = [tuple(self.tokenizer(p)["input_ids"]) for p in prompts]
        problems = [
            f"inputs[{i}] has {len(p)} tokens; with max_new_tokens {parameters.max_new_tokens} that exceeds "
            f"n_positions {limit}"
            for i, p in enumerate(encoded)
            if len(p) + parameters.max_new_tokens > limit
        ]
        problems += [f"inputs[{i}] has no tokens" for i, p in enumerate(encoded) if not p]
        if problems:
            raise RequestError(422, *problems)
        jobs = [
            Job(Sequence(p, parameters.max_new_tokens), parameters, sampling.generator(parameters)) for p in encoded
        ]
        for job in jobs:
            self.scheduler.submit(job.sequence)
            self._jobs[job.sequence] = job
        return jobs

    def step(self) -> None:
        """Execute one graph for whoever is next, and give each of its sequences a token."""
        step = self.scheduler.step()
        if step is None:
            return
        with torch.inference_mode():
            # One type for all three: the library scatters cache ids into a tensor of the type of the token ids.
            logits = self.model.forward(
                input_ids=torch.tensor(step.ids, dtype=torch.int64),
                cache_ids=torch.tensor(step.cache_ids, dtype=torch.int64),
                start_ids=torch.tensor(step.start_ids, dtype=torch.int64),
            )
        rows = logits.float().numpy()
        jobs = [self._jobs[sequence] for sequence in step.sequences]
        tokens = [sampling.choose(row, job.parameters, job.chance) for row, job in zip(rows, jobs)]  # noqa: B905
        self.scheduler.advance(step, tokens)
        for job, token in zip(jobs, tokens):  # noqa: B905
            self._receive(job, token)
            if job.reason:
                self.cancel([job])

    def cancel(self, jobs: Items[Job]) -> None:
        """Free what finished or abandoned jobs hold; twice is once."""
        for job in jobs:
            self._jobs.pop(job.sequence, None)
            self.scheduler.release(job.sequence)

    def _receive(self, job: Job, token: int) -> None:
        ended = token in self.ends
        if not ended:
            job.kept.append(token)
        full = len(job.sequence.generated) == job.sequence.max_new_tokens
        self._read(job, whole=ended or full)
        before = cut(job.text, job.parameters.stop)
        if before is not None:
            job.text, job.reason = before, "stop_sequence"
        elif ended or full:
            job.reason = "eos_token" if ended else "length"

    def _read(self, job: Job, whole: bool) -> None:
        """Add to the text what the newest tokens say; half a character waits for its rest, unless this is all."""
        # Only the last few tokens are decoded again: decoding 1,024 of them takes milliseconds, in every step.
        old, new = (self._decode(job.kept[job.context : end]) for end in (job.read, len(job.kept)))
        if whole or not new.endswith("\ufffd"):
            job.text += new[len(old) :]
            job.context, job.read = job.read, len(job.kept)

    def _decode(self, tokens: list[int]) -> str:
        # As the model wrote it: cleaning up spaces would change text that a stream has already shown.
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def load(model_dir: Path, options: ServeOptions) -> NeuronEngine:
    """Read the artifact in `model_dir`, with its compiled graphs if it was prepared; else compile, in minutes.

    Raises ArtifactError if it was prepared for other options or versions: compiling anew would outlast the start-up
    window of an endpoint.
    """
    compiled = find_compiled(model_dir, compile_key(model_dir, options))
    model = build(model_dir, options)
    if compiled is None:
        print(f"engine neuron: {model_dir} is not prepared; compiling, which takes minutes", flush=True)
    else:
        print(f"engine neuron: compiled graphs from {compiled}", flush=True)
    to_device(model, compiled)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return NeuronEngine(model, tokenizer, end_tokens(model_dir), options)


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


def end_tokens(model_dir: Path) -> frozenset[int]:
    """Tokens that end an answer: generation_config.json's, else config.json's."""
    source: Any = GenerationConfig if (model_dir / "generation_config.json").is_file() else AutoConfig
    ends = source.from_pretrained(model_dir).eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


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
