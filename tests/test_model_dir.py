"""containers/model_dir.py: a model directory that cannot be trained is told in one line, from headers alone."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from containers import model_dir
from harness.assets import tiny
from harness.spec.stacks import known_models

KNOWN = known_models("sdk2.20")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "made", "").parent / "model"


def found(folder: Path) -> list[str]:
    return [str(finding) for finding in model_dir.check(folder, KNOWN)]


def test_a_model_that_can_be_trained_has_no_line(model: Path) -> None:
    assert found(model) == []


class Change:
    """A change of a model's directory, with what it is called on docs/reference/refusals.md."""

    def __init__(self, called: str, apply: Callable[[Path], object]) -> None:
        self.called, self.apply = called, apply

    def __call__(self, folder: Path) -> None:
        self.apply(folder)


def config(**change: Any) -> Change:
    """A change of config.json; a value of ... takes the key away."""

    def apply(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))

    told = [f"no {k}" if v is ... else f"{k} {json.dumps(v)}" for k, v in change.items()]
    return Change(f"config.json: {', '.join(told)}", apply)


def file(name: str, content: str | bytes) -> Change:
    raw = content if isinstance(content, bytes) else content.encode()
    return Change(f"{name}: {raw[:40]!r}", lambda folder: (folder / name).write_bytes(raw))


def header(called: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        tensors = json.loads(raw[8 : 8 + length])
        change(tensors)
        text = json.dumps(tensors).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return Change(f"model.safetensors: {called}", apply)


def sharded(lost: bool = False, wrong: bool = False) -> Change:
    def apply(folder: Path) -> None:
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        whole = folder / "model.safetensors"
        for name in names[: 1 if lost else 2]:
            shutil.copy(whole, folder / name)
        whole.unlink()
        places = {tensor: names[i % 2] for i, tensor in enumerate(tiny.shapes())}
        places |= {"other.weight": names[1]} if wrong else {}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return Change("two shards, one is missing" if lost else "two shards, the index names more than they have", apply)


def moved(name: str, target: str) -> Change:
    """A file as the hub's cache has it: a relative link to a blob."""

    def apply(folder: Path) -> None:
        blobs = folder.parent / "blobs"
        blobs.mkdir(exist_ok=True)
        shutil.move(folder / name, blobs / "abc")
        (folder / name).symlink_to(target)

    return Change(f"{name}: a link to {target}", apply)


def only(name: str) -> Change:
    def apply(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_text("x")

    return Change(f"only {name}", apply)


def removed(name: str) -> Change:
    return Change(f"no {name}", lambda folder: (folder / name).unlink())


def cut(size: int) -> Change:
    def apply(folder: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(raw[:size])

    return Change(f"model.safetensors: its first {size} bytes", apply)


ROPE = {"rope_theta": 500000.0, "rope_type": "default"}
YARN = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (config(rope_theta=..., rope_parameters=ROPE), 'add to config.json: "rope_theta": 500000.0'),
        (config(rope_parameters=YARN), '"rope_scaling": {"rope_type": "yarn", "factor": 4.0}'),
        (config(rope_parameters={"full_attention": ROPE, "sliding_attention": ROPE}), "take an older version"),
        (config(rope_scaling={"rope_type": "proportional", "factor": 2.0}), 'rope_scaling of type "proportional"'),
        (config(rope_scaling={"type": "ntk"}), 'rope_scaling of type "ntk" is not known'),
        (config(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling.Mine"}), "needs code of its own"),
        (config(model_type="lama"), 'did you mean "llama"?'),
        (config(model_type="qwen3"), 'model type "qwen3" is not a causal language model of transformers 4.48.1'),
        (config(model_type=...), "model_type is missing"),
        (config(architectures=["LlamaForSequenceClassification"]), "it was trained for another task"),
        (config(quantization_config={"quant_method": "gptq", "bits": 4}), "the model is quantised (gptq)"),
        (config(quantization_config={"quant_method": "fp8"}), "the model is quantised (fp8)"),
        (config(vocab_size=300), "embed_tokens.weight has 264 rows, config.json says vocab_size 300"),
        (config(vocab_size="264"), "vocab_size is '264'; it must be a whole number"),
        (config(hidden_size=128), "has 256 columns, config.json says hidden_size 128"),
        (config(num_hidden_layers=4), "no weights for layer 2, 3"),
        (config(num_hidden_layers=1), "weights for 2 layers"),
        (config(rope_theta=0), "rope_theta is 0; it must be a number above 0"),
        (file("config.json", "{"), "config.json: not JSON"),
        (file("config.json", ""), "config.json: empty"),
        (file("config.json", "[]"), "config.json: a JSON object expected, not list"),
        (file("config.json", "\ufeff{}"), "begins with a byte order mark"),
        (file("config.json", b'{"a": "\xff"}'), "config.json: not UTF-8 text"),
        (file("config.json", LFS), "config.json: a Git LFS pointer"),
        (removed("config.json"), "no config.json"),
        (file("generation_config.json", "{'a': 1}"), "generation_config.json: not JSON"),
        (file("tokenizer.json", "{}"), "tokenizer.json: no vocabulary in it"),
        (file("tokenizer.json", LFS), "tokenizer.json: a Git LFS pointer"),
        (removed("tokenizer.json"), "no tokenizer (tokenizer.json)"),
        (file("tokenizer_config.json", '{"tokenizer_class": "TokenizersBackend"}'),
         "TokenizersBackend is not known: transformers 4.48.1 has no such class"),
        (file("tokenizer_config.json", '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["a", null]}}'),
         "its code (auto_map) is not run in the image"),
        (removed("model.safetensors"), "no weights (model.safetensors)"),
        (file("model.safetensors", ""), "not a safetensors file, or cut off in its header: 0 bytes"),
        (file("model.safetensors", LFS), "model.safetensors: a Git LFS pointer, not the weights"),
        (file("model.safetensors", "<html>not found</html>"), "not a safetensors file"),
        (cut(5000), "it is cut off"),
        (cut(20), "cut off in its header"),
        (header("a wrong shape", lambda t: t["model.norm.weight"].update(shape=[5])),
         "the size of model.norm.weight does not fit"),
        (header("no dtype", lambda t: t["model.norm.weight"].pop("dtype")),
         "says nothing useful of model.norm.weight"),
        (header("FP8", lambda t: t["model.norm.weight"].update(dtype="F8_E4M3")), "values of type F8_E4M3"),
        (header("a qweight", lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": t.pop("model.norm.weight")})),
         "qweight"),
        (sharded(lost=True), "index.json names model-00002-of-00002.safetensors: of its 2 files 1 are missing"),
        (sharded(wrong=True), "1 weights that model.safetensors.index.json says are in it are not, other.weight"),
        (moved("model.safetensors", "../blobs/none"), "model.safetensors: a link to ../blobs/none"),
        (moved("config.json", "../blobs/none"), "config.json: a link to ../blobs/none, which is not there"),
        (only("adapter_config.json"), "a LoRA adapter, not a model (merge it into its base model)"),
        (only("model.Q4_K_M.gguf"), "a GGUF model"),
        (only("params.json"), "weights in their authors' own form"),
        (only("model_index.json"), "a diffusion pipeline"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_told(model: Path, change: Change, said: str) -> None:
    change(model)
    lines = found(model)
    assert any(said in line for line in lines), lines
    assert len(lines) <= 3, lines


@pytest.mark.parametrize(
    "change",
    [
        moved("model.safetensors", "../blobs/abc"),
        moved("config.json", "../blobs/abc"),
        sharded(),
        config(auto_map={"AutoModel": "x"}),
        config(rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}),
        config(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        config(torch_dtype=..., dtype="bfloat16"),
        removed("generation_config.json"),
    ],
)
def test_what_can_be_trained_is_not_refused(model: Path, change: Change) -> None:
    change(model)
    assert found(model) == []


def test_directories_that_are_not_there(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == [f"{tmp_path / 'none'}: no such directory"]
    assert found(tmp_path) == [f"{tmp_path}: the directory is empty"]
    (tmp_path / "snapshots" / "abc").mkdir(parents=True)
    assert f"use {tmp_path / 'snapshots' / 'abc'}" in found(tmp_path)[0]
    (tmp_path / "link").symlink_to("nowhere")
    assert "a link that leads nowhere" in found(tmp_path / "link")[0]


@pytest.mark.parametrize(
    ("values", "change", "said"),
    [
        ({"block_size": 256}, {}, "block_size 256 exceeds the model's 128 positions (set block_size 128)"),
        ({"packing": True, "block_size": 64}, {"model_type": "gpt2"}, "not shown to be right for model type gpt2"),
        (
            {"packing": True, "block_size": 64},
            {"model_type": "mistral", "sliding_window": 32},
            "above the model's sliding window 32",
        ),
    ],
)
def test_flags_that_the_model_cannot_do(
    model: Path, values: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    config(**change)(model)
    (finding,) = model_dir.fits(model, values)
    assert said in str(finding)
    config(use_sliding_window=False, model_type="qwen2")(model)
    assert model_dir.fits(model, values | {"block_size": 64}) == []


@given(st.binary(max_size=200), st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]))
def test_any_bytes_are_told_and_never_raise(tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str) -> None:
    folder = tiny.write(tmp_path_factory.mktemp("any"), "").parent / "model"
    (folder / name).write_bytes(raw)
    assert found(folder)


def test_every_type_that_packing_is_allowed_for_is_known() -> None:
    assert set(model_dir.PACKED_FAMILIES) <= set(KNOWN.model_types)
