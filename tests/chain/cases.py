"""Model directories and data of public reports, through run_clm in one process: JSON, a name and what came of it.

.venv-train/bin/python -m tests.chain.cases MODEL FOLDER
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from train import run_clm

CHAT = [{"role": "user", "content": "red: warm?"}, {"role": "assistant", "content": "Yes"}]


class Cases:
    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder, self.found = model, folder, dict[str, Any]()
        self.rows = folder / "rows.jsonl"
        self.rows.write_text(
            "\n".join(json.dumps({"prompt": f"q{i}: warm?", "completion": " Yes"}) for i in range(16))
        )
        self.chats = folder / "chats.jsonl"
        self.chats.write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(16)))

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.model, self.folder / name / "model", dirs_exist_ok=True))

    def run(self, name: str, model: Path, **more: Any) -> None:
        """What the job printed and left."""
        given_data = {} if {"train_file", "dataset_name"} & set(more) else {"train_file": self.rows}
        out, given = self.folder / name, io.StringIO()
        fixed = {"device": "cpu", "block_size": 48, "max_steps": 2, "report_to": "none", "optim": "adamw_torch"}
        fixed |= {"disable_tqdm": "true", "per_device_train_batch_size": 4, "model_name_or_path": model}
        fixed |= {"output_dir": out / "c", "export_dir": out / "m", "metrics_dir": out / "k", **given_data, **more}
        words = [f"--{key}={value}" for key, value in fixed.items()]
        with contextlib.redirect_stdout(given):
            try:
                code = run_clm.guarded(words)
            except Exception as error:  # noqa: BLE001 (what a user would see as a traceback)
                code = f"{type(error).__name__}: {error}"
        left = {p.name: json.loads(p.read_text()) for p in sorted((out / "m").glob("*config.json"))}
        self.found[name] = {"code": code, "output": given.getvalue(), "left": left}

    def models(self) -> None:
        model = self.copy("genconfig-sampling")
        (model / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
        self.run("genconfig-sampling", model, save_strategy="steps", save_steps=1)

        model = self.copy("eos-differs")
        tokenizer, made = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
        tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
        made.resize_token_embeddings(len(tokenizer))
        made.save_pretrained(model)
        tokenizer.save_pretrained(model)
        self.run("eos-differs", model)

        model = self.copy("no-eos-in-config")
        (model / "generation_config.json").unlink()
        self.change(model, eos_token_id=None)
        self.run("no-eos-in-config", model)

        model = self.copy("rope-parameters")
        self.change(
            model, rope_theta=..., rope_parameters={"rope_theta": 5e5, "rope_type": "default"}, dtype="bfloat16"
        )
        self.run("rope-parameters", model)

        model = self.copy("missing-weights")
        weights = load_file(model / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        self.run("missing-weights", model)
        self.run("missing-weights-allowed", model, allow_missing_weights="true")

        model = self.copy("ids-outside")
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
        tokenizer.save_pretrained(model)
        self.run("ids-outside", model)

        model = self.copy("learned-positions")
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(model)
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2))
        gpt2.save_pretrained(model)
        self.run("learned-positions", model, packing="true")

        cache = self.folder / "hub"
        (cache / "blobs").mkdir(parents=True)
        (cache / "snapshots" / "abc").mkdir(parents=True)
        for i, path in enumerate(sorted(self.model.iterdir())):
            shutil.copy(path, cache / "blobs" / str(i))
            (cache / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/{i}")
        self.run("hub-cache", cache / "snapshots" / "abc")

    def change(self, model: Path, **keys: Any) -> None:
        config = json.loads((model / "config.json").read_text()) | keys
        (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    def data(self) -> None:
        self.run("chat without a template", self.model, train_file=self.chats)
        self.run("chatml", self.model, train_file=self.chats, chat_template="chatml", packing="true", block_size=128)
        model = self.copy("jinja beside")
        (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<eos>{% endfor %}")
        self.run("jinja beside", model, train_file=self.chats)
        folder = self.folder / "parts"
        folder.mkdir()
        for i in range(3):
            shutil.copy(self.rows, folder / f"{i}.jsonl")
        self.run("directory", self.model, train_file=folder, validation_split_percentage=10)
        for name, values in {
            "hub-null": [{"text": "some text"}, {"text": None}],
            "hub-chats-in-text": [{"text": CHAT}] * 2,
            "hub-label": [{"label": 1}],
            "hub": [{"text": "one two three " * 9, "label": 1}] * 9,
            "hub-chats": [{"messages": CHAT}] * 9,
        }.items():
            hub = self.folder / name / "hub" / "data"
            hub.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(values), hub / "train-00000.parquet")
            self.run(name, self.model, dataset_name=hub.parent, chat_template="chatml", block_size=128)
        short = self.folder / "short.txt"
        short.write_text("red blue " * 3)
        self.run("short-corpus", self.model, train_file=short, block_size=64)


def main(model: str, folder: str) -> None:
    cases = Cases(Path(model), Path(folder))
    cases.models()
    cases.data()
    json.dump(cases.found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
