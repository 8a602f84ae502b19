"""The run file's JSON Schema says of run files what the harness says, as far as a schema can."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from harness.errors import HarnessError
from harness.spec import checks, schema, stacks
from tests.conftest import ROOT

RUN_FILES = sorted((ROOT / "harness" / "runs").glob("*.toml"))
SCHEMA = Draft202012Validator(schema.document())


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema.document())


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_the_ready_made_run_files_fit_it_and_name_it(path: Any) -> None:
    text = path.read_text()
    assert [error.message for error in SCHEMA.iter_errors(tomllib.loads(text))] == []
    assert text.splitlines()[0] == "#:schema ./run-file.schema.json"
    assert (path.parent / "run-file.schema.json").is_file()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("[model]", "[modell]"),
        ("block_size =", "blok_size ="),
        ("n_positions =", "n_position ="),
        ("prompt =", "promt ="),
        ("learning_rate = 1e-4", 'learning_rate = "fast"'),
        ("bf16 = true", "bf16 = 1"),
        ('name = "smollm2-sarcasm"', 'name = "a b"'),
    ],
)
def test_what_the_harness_refuses_it_refuses(right: str, wrong: str, tmp_path: Any) -> None:
    text = (ROOT / "harness" / "runs" / "smollm2-sarcasm.toml").read_text()
    assert right in text, text
    spoilt = text.replace(right, wrong, 1)
    assert list(SCHEMA.iter_errors(tomllib.loads(spoilt))) != []
    (tmp_path / "x.toml").write_text(spoilt)
    with pytest.raises(HarnessError):
        checks.load(tmp_path / "x.toml", stacks.get(stacks.DEFAULT))


def test_the_changelogs_first_section_is_of_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None and first[1] == stacks.version()
    assert stacks.versions()[0] == f"neuron-harness {first[1]}"
