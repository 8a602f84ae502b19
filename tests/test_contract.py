"""containers/contract.py: what one side writes the other side reads, and limits are kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from containers import contract
from containers.contract import ContractError, Paths, Resources, TrainingInput

NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,20}", fullmatch=True)
VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=50))


@given(st.dictionaries(NAMES, VALUES, max_size=20))
def test_hyperparameters_are_strings_and_survive_json(values: dict) -> None:
    encoded = contract.encode_hyperparameters(values)
    assert set(encoded) == set(values)
    assert json.loads(json.dumps(encoded)) == encoded
    for key, value in values.items():
        if isinstance(value, bool):
            assert encoded[key] == str(value).lower()
        elif isinstance(value, float):
            assert float(encoded[key]) == value


@given(st.dictionaries(NAMES, st.text(alphabet="ab $*'\"\\ -", min_size=1, max_size=20), max_size=8))
def test_no_value_is_split_or_expanded_on_its_way_to_argv(values: dict) -> None:
    words = iter(contract.to_argv(values))
    found = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        found[name] = value if equals else next(words)
    assert found == values


def test_an_empty_string_is_a_bare_flag() -> None:
    argv = contract.to_argv({"do_train": "", "bf16": "true"})
    assert argv == ["--bf16", "true", "--do_train"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--do_train", action="store_true")
    parser.add_argument("--bf16")
    assert parser.parse_args(argv).do_train


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"a": "x" * 2501}, "2501"),
        ({"k" * 257: "x"}, "257"),
        ({f"k{i}": 1 for i in range(101)}, "101"),
    ],
)
def test_limits_are_named(values: dict, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        contract.encode_hyperparameters(values)


def test_write_then_read_is_the_identity(tmp_path: Path) -> None:
    job = TrainingInput(
        {"learning_rate": "5e-05", "text": 'a "b" $c'},
        ("model", "train"),
        Resources("algo-2", ("algo-1", "algo-2"), "ml.trn1.32xlarge", "eth0"),
    )
    contract.write_training_input(Paths(tmp_path), job)
    assert contract.read_training_input(Paths(tmp_path)) == job


def test_hosts_are_ordered_by_number() -> None:
    hosts = tuple(sorted(f"algo-{i}" for i in range(1, 13)))
    assert Resources(hosts=hosts).ordered_hosts == tuple(f"algo-{i}" for i in range(1, 13))


def test_every_sagemaker_path_becomes_an_argument(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    job = TrainingInput({"max_steps": "3"}, ("model", "train", "validation"))
    contract.write_training_input(paths, job)
    for name in ("train", "validation"):
        (paths.channel(name)).mkdir(parents=True)
        (paths.channel(name) / "rows.jsonl").write_text("{}")
    argv = contract.training_arguments(paths, job)
    given_ = dict(zip(argv[::2], argv[1::2], strict=True))
    assert given_ == {
        "--max_steps": "3",
        "--model_name_or_path": f"{tmp_path}/input/data/model",
        "--train_file": f"{tmp_path}/input/data/train/rows.jsonl",
        "--validation_file": f"{tmp_path}/input/data/validation/rows.jsonl",
        "--output_dir": f"{tmp_path}/checkpoints",
        "--export_dir": f"{tmp_path}/model",
        "--metrics_dir": f"{tmp_path}/output/data",
    }


def test_a_hyperparameter_wins_over_its_channel_but_never_over_the_contract(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    argv = contract.training_arguments(paths, TrainingInput({"model_name_or_path": "a/b"}, ("model",)))
    assert argv[argv.index("--model_name_or_path") + 1] == "a/b"
    with pytest.raises(ContractError, match="output_dir"):
        contract.training_arguments(paths, TrainingInput({"output_dir": "/x"}))


def test_a_data_channel_of_several_files_is_its_directory(tmp_path: Path) -> None:
    folder = Paths(tmp_path).channel("train")
    folder.mkdir(parents=True)
    with pytest.raises(ContractError, match="channel train: no data file"):
        contract.training_arguments(Paths(tmp_path), TrainingInput({}, ("train",)))
    for name in ("a", "b"):
        (folder / name).write_text("")
        argv = contract.training_arguments(Paths(tmp_path), TrainingInput({}, ("train",)))
        assert argv[argv.index("--train_file") + 1] == str(folder / "a" if name == "a" else folder)


def test_the_failure_file_is_cut_to_what_sagemaker_shows(tmp_path: Path) -> None:
    contract.write_failure(Paths(tmp_path), "x" * 3000 + "the end")
    text = contract.read_failure(Paths(tmp_path))
    assert len(text) == contract.MAX_FAILURE_REASON
    assert text.endswith("the end")


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1}'])
def test_damaged_configuration_is_one_line(tmp_path: Path, content: str) -> None:
    paths = Paths(tmp_path)
    paths.config.mkdir(parents=True)
    (paths.config / "hyperparameters.json").write_text(content)
    with pytest.raises(ContractError, match=r"^hyperparameters.json: .*$"):
        contract.read_training_input(paths)
