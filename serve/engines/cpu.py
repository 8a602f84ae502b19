"""Engine `cpu`, in its first form: transformers' generate on one batch at a time, left padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, set_seed

from serve.options import ServeOptions
from serve.protocols.errors import RequestError
from serve.protocols.lmi import Generation, Parameters


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
    """A causal language model on the CPU. One caller at a time: DJL runs one worker."""

    def __init__(self, model: Any, tokenizer: Any, options: ServeOptions) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.options = options

    def generate(self, prompts: Sequence[str], parameters: Parameters) -> list[Generation]:
        encoded = self._encode(prompts, parameters)
        with torch.inference_mode():
            out = self.model.generate(**encoded, **self._arguments(parameters))
        width = encoded["input_ids"].shape[1]
        lengths = encoded["attention_mask"].sum(dim=1).tolist()
        return [
            self._answer(row[width:].tolist(), int(n), parameters)
            for row, n in zip(out, lengths)  # noqa: B905
        ]

    def stream(self, prompt: str, parameters: Parameters) -> Iterator[str | Generation]:
        encoded = self._encode([prompt], parameters)
        # As the model wrote it: cleaning up spaces takes characters out of a stream that has already gone past them.
        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        result: list[Any] = []

        def work() -> None:
            try:
                with torch.inference_mode():
                    result.append(self.model.generate(**encoded, **self._arguments(parameters), streamer=streamer))
            except BaseException as error:  # noqa: BLE001 (handed to the reader below, which raises it)
                result.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        yield from (piece for piece in streamer if piece)
        thread.join()
        if isinstance(result[0], BaseException):
            raise result[0]
        width = encoded["input_ids"].shape[1]
        yield self._answer(result[0][0][width:].tolist(), width, parameters)

    def _encode(self, prompts: Sequence[str], parameters: Parameters) -> Any:
        """Token tensors of shape (prompts, longest prompt). Raises RequestError 422 for what does not fit."""
        limit = self.options.n_positions
        if len(prompts) > self.options.max_batch_size:
            raise RequestError(
                422,
                f"{len(prompts)} inputs; max_batch_size is {self.options.max_batch_size}: send them in parts",
            )
        encoded = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        lengths = encoded["attention_mask"].sum(dim=1).tolist()
        problems = [
            f"inputs[{i}] has {n} tokens; with max_new_tokens {parameters.max_new_tokens} that exceeds "
            f"n_positions {limit}"
            for i, n in enumerate(lengths)
            if n + parameters.max_new_tokens > limit
        ]
        if problems:
            raise RequestError(422, *problems)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def _arguments(self, p: Parameters) -> dict[str, Any]:
        if p.seed is not None:
            set_seed(p.seed)
        arguments: dict[str, Any] = {
            "max_new_tokens": p.max_new_tokens,
            "do_sample": p.do_sample,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        if p.do_sample:
            arguments.update(temperature=p.temperature, top_k=p.top_k, top_p=p.top_p)
        if p.stop:
            arguments.update(stop_strings=list(p.stop), tokenizer=self.tokenizer)
        return arguments

    def _answer(self, tokens: list[int], prompt_tokens: int, p: Parameters) -> Generation:
        eos = self.model.generation_config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        end = next((i for i, t in enumerate(tokens) if t in ends), None)
        kept = tokens if end is None else tokens[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        reason = "length" if end is None else "eos_token"
        cuts = [i for i in (text.find(s) for s in p.stop) if i >= 0]
        if cuts:
            text, reason = text[: min(cuts)], "stop_sequence"
        return Generation(text, reason, prompt_tokens, len(kept) if end is None else end + 1)


def load(model_dir: Path, options: ServeOptions) -> CpuEngine:
    """Read the artifact in `model_dir`; the number format and its reason go to the log."""
    dtype, reason = choose_dtype(options.dtype)
    print(f"engine cpu: serving in {dtype}: {reason}", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=wanted).eval()
    return CpuEngine(model, tokenizer, options)
