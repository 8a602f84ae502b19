"""`harness plan`, `lint`, `rules` and `prices` as commands: exit codes, JSON, --what-if, nothing heavy imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import remembered
from harness.errors import InvalidInput
from harness.estimate import price
from harness.run import forecast
from harness.spec import profile, runfile, stacks
from tests.estimate.test_price import TABLE

ROOT = Path(__file__).resolve().parents[2]
LAB = (ROOT / "harness" / "runs" / "tinyllama-imdb.toml").read_text()
STACK = stacks.get(stacks.DEFAULT)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))


def changed(tmp_path: Path, *pairs: tuple[str, str]) -> Path:
    text = LAB
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


FP32_ON_ONE_CORE = (("bf16 = true", "bf16 = false"), ("tensor_parallel_size = 2", "tensor_parallel_size = 1"))


def test_the_labs_run_file_fits_and_exits_with_0() -> None:
    done = harness("plan", "tinyllama-imdb")
    assert done.returncode == 0, done.stderr
    assert "training on ml.trn1.2xlarge: fits" in done.stdout
    assert "serving on ml.inf2.xlarge: fits" in done.stdout
    assert "supported until 2025-09" in done.stdout
    assert done.stdout.count("supported until 2025-09") == 1
    assert "unknown" in done.stdout  # the price of ml.trn1.2xlarge
    assert "on EC2 it is 1.34375 USD/h" in done.stdout


def test_fp32_adam_on_one_core_does_not_fit_and_exits_with_3(tmp_path: Path) -> None:
    done = harness("plan", str(changed(tmp_path, *FP32_ON_ONE_CORE)))
    assert done.returncode == 3
    assert "training does not fit a NeuronCore of ml.trn1.2xlarge" in done.stderr
    assert "optimizer state alone takes 8.2 GiB" in done.stderr
    assert "hint: train.bf16 = true" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_has_the_requests_the_outlook_and_the_findings() -> None:
    done = harness("plan", "tinyllama-imdb", "--json")
    raw = json.loads(done.stdout)
    assert raw["create_training_job"]["TrainingJobName"] == "tinyllama-imdb-RUN"
    outlook = raw["forecast"]["outlook"]
    assert outlook["verdict"] == "fits"
    assert {t["name"] for t in outlook["serve"]["core"]["terms"]} >= {
        "weights",
        "KV cache",
        "DMA rings",
        "scratchpad",
    }
    assert outlook["bill"]["total"] == "unknown"
    assert [f["severity"] for f in raw["forecast"]["findings"]] == ["note"]


def test_plans_own_requests_are_what_they_were() -> None:
    """from_json passes over what --json adds."""
    from harness.spec import plan

    raw = json.loads(harness("plan", "tinyllama-imdb", "--json").stdout)
    raw.pop("forecast")
    assert plan.from_json(json.dumps(raw)).run_id == "tinyllama-imdb-RUN"


def test_what_if_compares_in_one_table() -> None:
    done = harness("plan", "tinyllama-imdb", "--what-if", "tensor_parallel_size=1,2,8")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0].split()[0] == "train.tensor_parallel_size"
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "8"]
    assert "tp-more-than-cores" in lines[3]
    raw = json.loads(harness("plan", "tinyllama-imdb", "--what-if", "serve.n_positions=512,1024", "--json").stdout)
    sizes = [v["outlook"]["serve"]["core"]["total"]["expected"] for v in raw["variants"]]
    assert sizes[0] < sizes[1]


def run_of(path: Path) -> runfile.RunFile:
    return runfile.load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tensor_parallel_siz=1", "tensor_parallel_size"),
        ("nothing", "no values"),
        ("=1", "no setting"),
        ("block_size=", "no values"),
    ],
)
def test_a_what_if_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    path = changed(tmp_path)
    with pytest.raises(InvalidInput) as error:
        forecast.variants(path, run_of(path), STACK, profile.LOCAL, text)
    assert said in " ".join(error.value.problems[0].lines())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bf16=maybe", "must be true or false"),
        ("tp_degree=0", "at least 1"),
        ("train_instance=ml.trn9.large", "is not a SageMaker training instance type"),
        ("max_runtime_seconds=1", "greater than or equal to 60"),
    ],
)
def test_a_value_that_is_refused_is_a_line_of_the_table(tmp_path: Path, text: str, said: str) -> None:
    path = changed(tmp_path)
    _, found = forecast.variants(path, run_of(path), STACK, profile.LOCAL, text)
    assert said in found[0].problem


def test_a_model_that_is_not_carried_is_unknown_and_not_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "somebody/model"))
    done = harness("plan", str(path))
    assert done.returncode == 0
    assert "the shapes of somebody/model are not known here" in done.stdout


def test_a_model_directory_gives_its_own_shapes(tmp_path: Path) -> None:
    run = run_of(changed(tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,'
        ' "vocab_size": 100, "intermediate_size": 128}'
    )
    moved = run.model_copy(update={"model": run.model.model_copy(update={"id": str(folder)})})
    found = forecast.of(tmp_path / "run.toml", moved, STACK, profile.LOCAL)
    assert found.outlook is not None
    assert found.outlook.subject.arch.hidden == 64


def test_refreshed_prices_are_used(tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / forecast.PRICES).write_text(price.to_json(TABLE.rows))
    found = forecast.of(tmp_path / "run.toml", run_of(changed(tmp_path)), STACK, profile.LOCAL)
    assert found.outlook is not None
    assert found.outlook.bill.total is not None


WARM = """
import sys
sys.argv = ["harness", "plan", "tinyllama-imdb"]
from harness.cli import main
try:
    main.main()
except SystemExit:
    pass
print("HEAVY", sorted({"botocore", "boto3", "rich", "jinja2", "yaml"} & set(sys.modules)))
"""


def test_a_warm_plan_reads_no_service_model_and_no_table_library() -> None:
    """What keeps it under half a second; benchmarks/plan_time.py measures."""
    outputs = [
        subprocess.run([sys.executable, "-c", WARM], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert "HEAVY []" in outputs[1]


def test_what_is_remembered_depends_on_its_key_and_source_and_survives_damage(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("1")
    calls = []

    def make() -> list[int]:
        calls.append(1)
        return [len(calls)]

    assert remembered.remembered(make, "pytest", source, "a") == [1]
    assert remembered.remembered(make, "pytest", source, "a") == [1]
    assert remembered.remembered(make, "pytest", source, "b") == [2]
    source.write_text("changed")
    assert remembered.remembered(make, "pytest", source, "a") == [3]
    for path in (cache / "remembered").glob("*.json"):
        path.write_text("{")
    assert remembered.remembered(make, "pytest", source, "a") == [4]


def test_a_refused_request_is_refused_again(tmp_path: Path) -> None:
    from harness.spec import service_model as aws

    for _ in range(2):
        with pytest.raises(InvalidInput, match="EndpointNam"):
            aws.validate("sagemaker", "DeleteEndpoint", {"EndpointNam": "x"})


def test_lint_prints_line_rule_and_remedy_and_exits_with_3_for_errors_only(tmp_path: Path) -> None:
    bad, fine = tmp_path / "serving.properties", tmp_path / "fine.properties"
    bad.write_text("engine=Python\noption.neuron_optimize_level=9\n")
    fine.write_text("engine=Python\n")
    done = harness("lint", str(bad), str(fine))
    assert done.returncode == 3
    assert f"{bad}:2: error: option.neuron_optimize_level=9 [serving-optimize-level]" in done.stdout
    assert "1 errors" in done.stderr
    assert harness("lint", str(fine)).returncode == 0
    raw = json.loads(harness("lint", str(bad), "--json").stdout)
    assert (raw[0]["rule"], raw[0]["line"]) == ("serving-optimize-level", 2)
    missing = harness("lint", str(bad), str(tmp_path / "missing"))
    assert "no file" in missing.stderr
    assert "serving-optimize-level" in missing.stdout


def test_rules_lists_and_explains() -> None:
    listed = harness("rules").stdout
    assert "tp-more-than-cores" in listed
    one = harness("rules", "tp-more-than-cores").stdout
    assert "https://github.com/vllm-project/vllm-neuron/issues/7" in one
    done = harness("rules", "tp-more-than-core")
    assert done.returncode == 8
    assert "tp-more-than-cores" in done.stderr
    assert len(json.loads(harness("rules", "--json").stdout)) > 60


def test_prices_show_source_date_and_status() -> None:
    done = harness("prices", "--region", "us-west-2")
    assert "second-hand" in done.stdout
    assert "https://" in done.stdout
    assert "us-east-1" not in done.stdout
    assert "TinyLlama" in harness("prices", "--models").stdout


def test_rows_are_counted_in_every_form_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = '{"prompt": "a question", "completion": "an answer"}\n'
    (tmp_path / "a.jsonl").write_text(row * 40)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.csv").write_text("prompt,completion\n" + "a,b\n" * 60)
    both = '["a.jsonl", "more"]'

    def steps(data: str, train: str = "") -> int | None:
        path = tmp_path / "x.toml"
        head = 'name = "x"\n[model]\nid = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"\n[train]\nnum_train_epochs = 1\n'
        path.write_text(f"{head}per_device_train_batch_size = 1\nblock_size = 64\n{train}\n[data]\n{data}\n")
        outlook = forecast.of(path, run_of(path), STACK, profile.LOCAL).outlook
        assert outlook is not None
        return outlook.subject.rows

    assert steps(f"train = {both}") == 100
    assert steps(f"train = {both}\nvalidation_split_percentage = 10") == 90
    size = sum(p.stat().st_size for p in (tmp_path / "a.jsonl", tmp_path / "more" / "b.csv"))
    assert steps(f"train = {both}", "packing = true") == int(size / forecast.CHARACTERS_PER_TOKEN / 64)
    assert steps('train = "s3://a-bucket/data"') is None
    assert steps('id = "owner/name"') is None
    monkeypatch.setattr(forecast, "COUNTED", 0)
    assert steps('train = "a.jsonl"') == 40, "of large files the lines are counted"
    (tmp_path / "a.json").write_text('[{"prompt": "a", "completion": "b"},\n{"prompt": "c", "completion": "d"}]')
    assert steps('train = "a.json"') is None, "lines of an array are not its rows"
