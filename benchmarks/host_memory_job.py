"""The measured processes of benchmarks/host_memory.py, in .venv-neuron: `model`, `load`, `end`, … and a folder."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# TinyLlama-1.1B (config.json of TinyLlama/TinyLlama-1.1B-Chat-v1.0): the lab's model.
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": int(os.environ.get("LAYERS", "22")),
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
WORLD, RANK = 2, 16


def anonymous() -> int:
    """Bytes of anonymous memory that are resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


@contextmanager
def peak() -> Any:
    """The most anonymous memory inside, above what there was before; asked every five milliseconds."""
    result = SimpleNamespace(above=0)
    before, done = anonymous(), threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            result.above = max(result.above, anonymous() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        result.above = max(result.above, anonymous() - before)
        done.set()
        thread.join()


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def model(folder: Path) -> None:
    """Random weights in bf16 in one file, as TinyLlama has them, and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.chain import make_tiny_model

    make_tiny_model.main(folder / "model")  # its tokenizer is kept
    torch.set_default_dtype(torch.bfloat16)
    made = LlamaForCausalLM(LlamaConfig(**SIZES))
    made.save_pretrained(folder / "model")
    made.save_pretrained(folder / "pickled", safe_serialization=False)
    say(bytes=sum(p.numel() for p in made.parameters()) * 2)


def load(folder: Path, which: str) -> None:
    """Both ranks at once, each a process. `which`: model, or pickled, which upstream converts first."""
    from tests.nxd import cores
    from tests.nxd.cases import free_port

    cores.prepare()
    import train.devices.neuron  # noqa: F401 (once for both)

    port, pids = free_port(), []
    for rank in range(WORLD):
        if (pid := os.fork()) == 0:
            _rank(folder / which, rank, port)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0


def _rank(source: Path, rank: int, port: int) -> None:
    from tests.nxd import cores

    ones = {"WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "GROUP_WORLD_SIZE": 1, "ROLE_WORLD_SIZE": WORLD}
    zeros = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "ROLE_RANK": rank, "TORCHELASTIC_RESTART_COUNT": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "memory"}
    os.environ.update({name: str(value) for name, value in {**ones, **zeros, **where}.items()})
    cores.install()
    from transformers import AutoTokenizer

    from train.devices import neuron
    from train.rehearsal import rehearse

    words = {"tensor_parallel_size": WORLD, "max_steps": 1, "report_to": [], "save_strategy": "no"}
    arguments, _ = neuron.adapt(neuron.ARGUMENTS(output_dir=str(source.parent / "out"), **words))
    neuron.xm.xla_device()
    row = {"input_ids": [1] * 8, "labels": [1] * 8, "attention_mask": [1] * 8}
    tokenizer = AutoTokenizer.from_pretrained(source.parent / "model")
    with peak() as found:
        made = neuron.load_model(str(source), arguments)
        rehearse(made, tokenizer, source.parent / f"artifact-{rank}")
        trainer = neuron.trainer(model=made, args=arguments, train_dataset=[row] * 8)
        cut = trainer.accelerator.prepare_model(trainer.model)
        neuron.xm.mark_step()
        time.sleep(0.5)
    kept = sum(p.numel() * p.element_size() for p in cut.parameters())
    say(rank=rank, peak=found.above, kept=kept, above=found.above - kept)


def cut(folder: Path) -> None:
    """The model's shards of two ranks in fp32, and those of an adapter on its attention and MLP."""
    import torch
    from safetensors.torch import load_file

    from tests.shards.cut import Layout, cut

    layout = Layout(tp=WORLD, heads=32, kv_heads=4, layers=SIZES["num_hidden_layers"], xser=False)
    state = {name: tensor.float() for name, tensor in load_file(folder / "model" / "model.safetensors").items()}
    cut(state, folder / "end", layout)
    adapter, base = {}, []
    for name, weight in state.items():
        stem = name.removesuffix(".weight")
        if not stem.endswith("_proj"):
            base.append(f"base_model.model.{name}")
            continue
        adapter[f"base_model.model.{stem}.lora_A.weight"] = torch.randn(RANK, weight.shape[1])
        adapter[f"base_model.model.{stem}.lora_B.weight"] = torch.randn(weight.shape[0], RANK)
        base.append(f"base_model.model.{stem}.base_layer.weight")
    cut(adapter, folder / "end LoRA", layout, base)


def end(folder: Path, kind: str) -> None:
    """The export alone: of shards of two ranks, of theirs and an adapter, or of weights that this process keeps."""
    import torch
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from containers.artifact import Manifest
    from train.devices import neuron
    from train.export import export

    config = AutoConfig.from_pretrained(folder / "model")
    original = (config, GenerationConfig())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    manifest = Manifest("", "", "neuron", "bf16", "", {}, {"steps": 1.0})
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    if kind == "end one core":
        kept = AutoModelForCausalLM.from_pretrained(folder / "model", torch_dtype=torch.float32)
    with peak() as found:
        if kind == "end one core":
            made = neuron.Trained(*original, kept.state_dict().items)
        else:
            made = neuron.of_shards(folder / kind, original, WORLD, 1, lora if "LoRA" in kind else None)
        export(made, tokenizer, folder / f"artifact of {kind}", manifest)
    say(above=found.above)


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind.startswith("load"):
        load(folder, kind.removeprefix("load "))
    elif kind.startswith("end"):
        end(folder, kind)
    else:
        {"model": model, "cut": cut}[kind](folder)
