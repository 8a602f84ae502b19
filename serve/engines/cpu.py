"""Engine `cpu`: our own forward pass for the Llama family, transformers' model for everything else."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from serve.engines.common import end_tokens, repetition_penalty
from serve.engines.llama import Architecture, Llama, Unsupported, read_weights
from serve.options import OptionError, ServeOptions
from serve.scheduler import Row, Shapes, Step

CHUNK = 512
"""Prompt tokens of a step at most. More per step gain nothing: 512 rows are enough for the processor's arithmetic."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_dtype(wanted: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
    """(dtype, reason): bf16 where the processor multiplies it natively, else fp32, which is faster there."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    native = "amx_bf16" in text or "avx512_bf16" in text
    if wanted == "fp32":
        return "fp32", "as asked"
    if wanted == "bf16" and native:
        return "bf16", "this processor has amx_bf16 or avx512_bf16"
    return "fp32", f"{wanted} was asked for; this processor has no native arithmetic for it"


class CpuEngine:
    """A causal language model on the CPU. One caller at a time."""

    def __init__(self, model: Any, tokenizer: Any, model_dir: Path, shapes: Shapes, description: str) -> None:
        self.model, self.tokenizer, self.shapes, self.description = model, tokenizer, shapes, description
        self.ends = end_tokens(model_dir, tokenizer)
        self.repetition_penalty = repetition_penalty(model_dir)
        self.prompt_logprobs = True

    def forward(self, step: Step) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.model.forward(step)
        return found

    def forward_all(self, prompts: list[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self.model.forward_all(prompts)
        return found


class Transformers:
    """Any causal language model by transformers' own code: one sequence after the other, a cache for each.

    Not every model's cache can be continued from outside generate(). So that is tried first, on a few tokens; where
    it fails or gives other numbers, every step reads the whole sequence again, which is slow and always right.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.caches: dict[int, Any] = {}
        self.tokens: dict[int, list[int]] = {}
        self.cached = self._continues()

    def _continues(self) -> bool:
        tokens = [int(t) % self.model.config.vocab_size for t in (11, 5, 7, 3, 2)]
        row = Row(None, 0, 0, tokens, True)  # type: ignore[arg-type]
        try:
            with torch.inference_mode():
                whole = self.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
                self.cached = True
                self._row(Row(row.sequence, 0, 0, tokens[:3], True))
                self._row(Row(row.sequence, 0, 3, tokens[3:4], True))
                last = self._row(Row(row.sequence, 0, 4, tokens[4:], True))
            near = torch.allclose(whole, last, atol=0.05 * float(whole.abs().max()), rtol=0.0)
            return near and bool(whole.argmax() == last.argmax())
        except Exception:  # noqa: BLE001 (whatever it is, the slow way is left)
            return False

    def forward(self, step: Step) -> NDArray[np.float32]:
        with torch.inference_mode():
            rows = [(row, self._row(row)) for row in step.rows]
        wanted = [logits.numpy() for row, logits in rows if row.sampled]
        return np.stack(wanted) if wanted else np.empty((0, self.model.config.vocab_size), dtype=np.float32)

    def forward_all(self, prompts: list[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [self.model(torch.tensor([p]), use_cache=False).logits[0].float().numpy() for p in prompts]

    def _row(self, row: Row) -> Any:
        """Logits (vocabulary,) after a row's last token."""
        if not row.start:
            self.caches.pop(row.slot, None)
            self.tokens[row.slot] = []
        self.tokens[row.slot] = [*self.tokens[row.slot][: row.start], *row.tokens]
        if not self.cached:
            return self.model(torch.tensor([self.tokens[row.slot]]), use_cache=False).logits[0, -1].float()
        out = self.model(torch.tensor([row.tokens]), past_key_values=self.caches.get(row.slot), use_cache=True)
        self.caches[row.slot] = out.past_key_values
        return out.logits[0, -1].float()


def load(model_dir: Path, options: ServeOptions) -> CpuEngine:
    """Read the artifact in `model_dir`. How it is computed, in what number format and why is in `description`."""
    dtype, reason = choose_dtype(options.dtype)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 4.45 on its own default for cleaning up spaces
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    buckets = (options.n_positions,)
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        architecture = Architecture.read(config, options.n_positions)
        model: Any = Llama(
            architecture, read_weights(model_dir), DTYPES[dtype], options.max_batch_size, options.n_positions
        )
        way = f"own forward pass, {'packed' if model.packed else 'plain'} weights"
        shapes = Shapes(options.max_batch_size, buckets, buckets, chunk=CHUNK)
    except Unsupported as unknown:
        model = Transformers(_transformers(model_dir, config, DTYPES[dtype]))
        way = f"transformers' model, since our own does not know: {unknown}"
        if not model.cached:
            way += "; its cache cannot be continued, so that every token reads the whole text again"
        shapes = Shapes(options.max_batch_size, buckets, buckets)
    return CpuEngine(model, tokenizer, model_dir, shapes, f"engine cpu: {way}; serving in {dtype}: {reason}")


def _transformers(model_dir: Path, config: dict[str, Any], dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, __version__

    if "rope_parameters" in config and int(__version__.partition(".")[0]) < 5:
        raise OptionError(
            f"config.json has rope_parameters, as transformers 5 writes it; transformers {__version__} here would "
            "ignore them: write rope_theta and rope_scaling"
        )
    return AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=dtype).eval()
