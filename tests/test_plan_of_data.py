"""`harness plan` with data, models and flags as users have them: what goes through, and what is said of the rest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from harness.assets import tiny
from harness.errors import InvalidInput
from harness.record import Record
from harness.run import inputs
from harness.run.invoke import read_prompts
from harness.spec import checks, plan, stacks
from harness.spec.profile import Profile
from harness.spec.runfile import RunFile

STACK = stacks.get("sdk2.20")
ROWS = "\n".join(json.dumps({"prompt": f"q{i}", "completion": " a"}) for i in range(4))
CHATS = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})


def run_file(folder: Path, data: str = 'train = "rows.jsonl"', train: str = "", model: str = "./model") -> Path:
    tiny.write(folder, "")
    (folder / "rows.jsonl").write_text(ROWS)
    path = folder / "x.toml"
    text = f'name = "x"\n[model]\nid = "{model}"\n[data]\n{data}\n[train]\nblock_size = 32\n{train}\n'
    text += "[serve]\nn_positions = 128"
    path.write_text(text, encoding="utf-8-sig")  # as Notepad and PowerShell write it
    return path


def problems(path: Path) -> list[str]:
    try:
        checks.load(path, STACK)
    except InvalidInput as error:
        return [" | ".join(problem.lines()) for problem in error.problems]
    return []


def planned(path: Path) -> dict[str, Any]:
    run = checks.load(path, STACK)
    profile = Profile(account="0" * 12, region="us-west-2", role_arn="arn:aws:iam::000000000000:role/x", bucket="bkt")
    return plan.make(run, STACK, profile, "x-1").create_training_job


@pytest.mark.parametrize(
    ("data", "train", "said"),
    [
        ("", 'lr_scheduler_type = "cosin"', 'train.lr_scheduler_type = "cosin" is not a valid choice'),
        ("", "learning_rate = -1e-5", "train.learning_rate = -1e-05: must be 0 or more"),
        ("", "learning_rate = nan", "train.learning_rate = nan: must be a finite number"),
        ("", "max_train_samples = -1", "train.max_train_samples = -1: must be 1 or more"),
        ("", "num_train = 3", "train.num_train is not a flag of run_clm"),
        ("", 'eval_strategy = "steps"', 'train.eval_strategy = "steps" cannot evaluate'),
        ("", 'token = "hf_abcdefghijklmnopqrstuvwxyz"', "train.token is a credential"),
        ("", "packing = true\npipeline_parallel_size = 2", "train.packing does not work with pipeline"),
        ("", 'train_file = "x"', "train.train_file comes from [model] and [data]"),
        ('train_on = "all"', 'train_on = "all"', "train.train_on is in [data], too"),
        ('columns = { promt = "q" }', "", "columns: promt is not a column"),
        ('format = "chatml"', "", "data.format"),
        ("validation_split_percentage = 90", "", "data.validation_split_percentage = 90"),
        ('columns = { prompt = "question" }', "", "rows.jsonl line 1: column question (prompt) is missing"),
        ('format = "text"', "", "rows.jsonl line 1"),
    ],
)  # fmt: skip
def test_what_plan_refuses(tmp_path: Path, data: str, train: str, said: str) -> None:
    lines = problems(run_file(tmp_path, f'train = "rows.jsonl"\n{data}', train))
    assert any(said in line for line in lines), lines
    assert "hf_abc" not in " ".join(lines)


def test_a_file_without_mistakes_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert problems(run_file(tmp_path)) == []
    smoothing = run_file(tmp_path, train="label_smoothing_factor = 0.5\nlearning_rate = 1e30\nmax_steps = 4")
    assert problems(smoothing) == []


def test_prompts_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\ntwo", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('\ufeff{"prompt": "one"}', encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == ["one", "two"]
    assert read_prompts(tmp_path / "a.jsonl") == ["one"]


def test_chats_need_a_template(tmp_path: Path) -> None:
    path = run_file(tmp_path, 'train = "chats.jsonl"')
    (tmp_path / "chats.jsonl").write_text(CHATS)
    (line,) = problems(path)
    assert "data.train holds chats, and the model has no chat template" in line
    path = run_file(tmp_path, 'train = "chats.jsonl"\nchat_template = "chatml"')
    assert problems(path) == []
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert problems(run_file(tmp_path, 'train = "chats.jsonl"')) == []


def test_the_model_directory_is_read(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"1234")
    lines = problems(path)
    assert any('model.id: config.json: model type "lama"' in line for line in lines)
    assert any("model.id: model.safetensors: not a safetensors file" in line for line in lines)


def test_datas_options_are_the_trainers_hyperparameters(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("\ufeff{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    (tmp_path / "qa.jsonl").write_text('{"question": "a", "answer": "b"}')
    data = """train = ["qa.jsonl"]
format = "prompt_completion"
columns = { prompt = "question", completion = "answer" }
train_on = "all"
too_long = "truncate"
chat_template = "own.jinja"
validation_split_percentage = 10
seed = 5"""
    values = planned(run_file(tmp_path, data))["HyperParameters"]
    assert {k: values[k] for k in values if k.startswith(("data_", "train_on", "too", "chat", "valid"))} == {
        "data_format": "prompt_completion",
        "data_columns": '{"prompt": "question", "completion": "answer"}',
        "train_on": "all",
        "too_long": "truncate",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "validation_split_percentage": "10",
        "validation_split_seed": "5",
    }
    assert "train_on" not in planned(run_file(tmp_path))["HyperParameters"]


def test_a_prefix_in_s3_is_the_channel(tmp_path: Path) -> None:
    request = planned(run_file(tmp_path, 'train = "s3://other/data/"\nvalidation = "rows.jsonl"'))
    found = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in request["InputDataConfig"]}
    assert found["train"] == "s3://other/data/"
    assert found["validation"] == "s3://bkt/runs/x-1/channels/validation/"


def staged(path: Path, folder: Path) -> dict[str, Path]:
    return inputs.channels(checks.load(path, STACK), Record("x-1", folder), print)


def test_what_is_uploaded_is_unpacked_and_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "b.jsonl").write_text(ROWS)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(ROWS.encode()))
    (folder / "c.jsonl").symlink_to("../rows.jsonl")
    path = run_file(tmp_path, 'train = ["rows.jsonl", "more"]\nvalidation = "rows.jsonl"\ntest = "more/b.jsonl"')
    found = staged(path, tmp_path / "record")
    assert found["validation"] == tmp_path / "rows.jsonl"
    names = ["00000-rows.jsonl", "00001-a.jsonl", "00002-b.jsonl", "00003-c.jsonl"]
    assert sorted(p.name for p in found["train"].iterdir()) == names
    assert all(p.read_text() == ROWS for p in found["train"].iterdir())
    packed = staged(run_file(tmp_path, 'train = "more/a.jsonl.gz"'), tmp_path / "record")
    assert [p.name for p in packed["train"].iterdir()] == ["00000-a.jsonl"]


def test_the_run_files_templates_are_the_trainers() -> None:
    from harness.spec.runfile import TEMPLATE_NAMES
    from train.render import TEMPLATES

    assert set(TEMPLATE_NAMES) == set(TEMPLATES)
    assert RunFile.model_fields["data"] is not None
