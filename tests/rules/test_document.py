"""Facts and their lines, from every format, and files inside files; anything at all is read without an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from harness.errors import InvalidInput, NotFound
from harness.rules import lint
from harness.rules.document import ARG, ENV, IMAGE, PACKAGE, PROPERTY, SUFFIXES, Document, kind_of, read
from harness.rules.known import image_of


def facts(document: Document, kind: str) -> dict[str, tuple[str, int]]:
    return {f.name: (f.value, f.line) for f in document.all(kind)}


PROPERTIES = "engine=Python\noption.tensor_parallel_degree=3\n"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("serving.properties", PROPERTIES, 2),
        ("no-suffix", PROPERTIES, 2),
        ("a.sh", f"mkdir code\ncat > code/serving.properties <<'EOF'\n{PROPERTIES}EOF\n", 4),
        ("Dockerfile", f"FROM x\nRUN cat > /s.properties <<EOF\n{PROPERTIES}EOF\nENV A=1\n", 4),
        ("a.yaml", "data:\n  serving.properties: |\n    engine=Python\n    option.tensor_parallel_degree=3\n", 4),
        ("a.py", f'TEXT = """\n{PROPERTIES}"""\n', 3),
        ("a.py", 'properties = {\n    "engine": "Python",\n    "option.tensor_parallel_degree": 3,\n}\n', 3),
    ],
)
def test_serving_properties_wherever_they_are(name: str, text: str, line: int) -> None:
    assert facts(read(name, text), PROPERTY)["option.tensor_parallel_degree"] == ("3", line)


def notebook(*cells: str) -> str:
    made = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "source": c.splitlines(keepends=True)} for c in cells
    ]
    return json.dumps({"cells": made, "nbformat": 4}, indent=1)


def test_a_notebooks_lines_are_the_files() -> None:
    text = notebook(
        "# title\nx = 1\n", f"%%writefile serving.properties\n{PROPERTIES}", "!pip install torch-neuronx\n"
    )
    lines = text.splitlines()
    document = read("a.ipynb", text)
    _, line = facts(document, PROPERTY)["option.tensor_parallel_degree"]
    assert "tensor_parallel_degree" in lines[line - 1]
    _, line = facts(document, PACKAGE)["torch-neuronx"]
    assert "torch-neuronx" in lines[line - 1]


def test_a_name_from_one_cell_is_known_in_the_next() -> None:
    document = read("a.ipynb", notebook('kind = "ml.inf2.xlarge"\n', "m.deploy(instance_type=kind, count=f())\n"))
    found = facts(document, ARG)
    assert found["instance_type"][0] == "ml.inf2.xlarge"
    assert found["count"][0] == "<expression>"


def test_a_dockerfile() -> None:
    text = (
        "ARG BASE=ubuntu:22.04\nFROM ${BASE} AS x\nENV A=1 \\\n    B='two words'\nENV OLD style\n"
        "RUN apt-get update && \\\n    # a comment\n    pip install --no-cache-dir 'numpy<2' \\\n"
        "      torch-neuronx==2.1.* && true\n"
        'CMD ["vllm", "serve", "--tensor-parallel-size", "8"]\n'
    )
    document = read("Dockerfile", text)
    assert facts(document, IMAGE)["ubuntu:22.04"] == ("ubuntu:22.04", 2)
    assert facts(document, ENV) | {"A": ("1", 3), "B": ("two words", 4), "OLD": ("style", 5)} == facts(document, ENV)
    assert set(facts(document, PACKAGE)) == {"numpy", "torch-neuronx"}
    assert facts(document, ARG)["tensor_parallel_size"] == ("8", 10)


def test_a_shell_script_with_variables_and_continuations() -> None:
    text = "TP=8\nexport SIZE=${TP}\ntorchrun run.py \\\n  --bf16 \\\n  --tensor_parallel_size $TP \\\n  --lr=1e-4\n"
    document = read("a.sh", text)
    expected = {"bf16": ("", 4), "tensor_parallel_size": ("8", 5), "lr": ("1e-4", 6)}
    assert facts(document, ARG) | expected == facts(document, ARG)
    assert facts(document, ENV)["SIZE"] == ("8", 2)


def test_yaml_of_a_pod() -> None:
    text = (
        "spec:\n  containers:\n  - args: [--tensor-parallel-size, '8', --enable-prefix-caching]\n    env:\n"
        "    - name: NEURON_RT_NUM_CORES\n      value: '8'\n    command:\n    - /bin/sh\n    - -c\n    - |\n"
        "      vllm serve m \\\n        --swap-space 0\n"
    )
    document = read("a.yaml", text)
    found = facts(document, ARG)
    assert found["tensor_parallel_size"] == ("8", 3)
    assert found["enable_prefix_caching"] == ("", 3)
    assert found["swap_space"] == ("0", 12)
    assert facts(document, ENV)["NEURON_RT_NUM_CORES"] == ("8", 6)


def test_a_helm_template_is_read_around_its_braces() -> None:
    document = read("a.yaml", "{{- if .Values.x }}\nimage: a/b:1\nargs: ['--tp', '2']\n{{- end }}\n")
    assert facts(document, ARG)["tp"] == ("2", 3)


def test_hyperparameters_have_their_lines_and_sdk_quotes_are_dropped() -> None:
    document = read("hyperparameters.json", '{\n "a": "\\"cosine\\"",\n "nested": {\n  "b": true\n }\n}\n')
    assert facts(document, ARG)["a"] == ("cosine", 2)
    assert facts(document, ARG)["b"] == ("true", 4)


def test_comments_are_not_facts() -> None:
    assert read("a.py", "# ml.inf2.xlarge was too small\nx = 1\n").facts[0].value == "1"
    assert "ml.inf2.xlarge" not in {f.value for f in read("a.sh", "run # on ml.inf2.xlarge\n").facts}


def test_an_images_tag_is_taken_apart() -> None:
    image = image_of(
        "763104351884.dkr.ecr.us-west-2.amazonaws.com/huggingface-pytorch-training-neuronx:"
        "2.1.2-transformers4.48.1-neuronx-py310-sdk2.20.0-ubuntu20.04"
    )
    assert image is not None
    assert (image.sdk, image.python, image.transformers, image.region) == (
        (2, 20, 0),
        (3, 10),
        (4, 48, 1),
        "us-west-2",
    )
    assert image.trains
    assert image_of("nvidia/cuda:12") is None
    assert image_of("ubuntu") is None


def test_the_kind_is_found_without_a_suffix() -> None:
    assert kind_of("x", "#!/bin/bash\n") == "shell"
    assert kind_of("x", "FROM a\n") == "dockerfile"
    assert kind_of("x", "{}") == "json"
    assert kind_of("x", "hello") == "text"
    assert kind_of("train.Dockerfile", "") == "dockerfile"
    assert kind_of("requirements-dev.txt", "") == "requirements"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*(f"a.{s}" for s in SUFFIXES), "Dockerfile", "requirements.txt", "x"]), st.text(max_size=300))
def test_any_text_is_linted_without_an_error(name: str, text: str) -> None:
    for finding in lint.lint(name, text):
        assert finding.line >= 0


PIECES = [
    "engine=Python", "option.n_positions=", "512", "ml.inf2.xlarge", "FROM ", "RUN pip install ", "torch-neuronx",
    "<<EOF", "EOF", "\\", "\n", "--tensor-parallel-size", "=", "[", "]", "{", "}", '"', "'", ":", "- name: A",
    "  value: 1", "export A=$B", "|", '{"cells": [{"cell_type": "code", "source": ["', '"]}]}', "%%writefile x.sh",
    "$(", "sdk2.20.0", "neuronx:2.1", "99999999999999",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*(f"a.{s}" for s in SUFFIXES), "Dockerfile"]), st.lists(st.sampled_from(PIECES), max_size=25))
def test_pieces_of_launch_files_in_any_order_are_linted_without_an_error(name: str, pieces: list[str]) -> None:
    lint.lint(name, "".join(pieces))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "a:\n" + " " * 3 + "- " * 5_000, "((" * 20_000])
def test_deep_nesting_is_passed_over(text: str) -> None:
    for name in ("a.json", "a.yaml", "a.py", "a.ipynb"):
        lint.lint(name, text)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        lint.lint_file(tmp_path / "missing")
    with pytest.raises(InvalidInput, match="directory"):
        lint.lint_file(tmp_path)
    (tmp_path / "a.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        lint.lint_file(tmp_path / "a.py")


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "serving.properties"
    path.write_text("option.neuron_optimize_level=7\n", encoding="utf-8-sig")
    assert [f.rule for f in lint.lint_file(path)] == ["serving-optimize-level"]
