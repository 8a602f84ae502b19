"""docs/internals/extending.md: its blocks, used as by somebody who adds a rule, an engine, an executor or a stack."""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import executors
from harness.executors.spec import ContainerSpec
from harness.rules import lint
from harness.rules.rule import RULES
from harness.spec import checks, plan as plans, runfile, stacks
from harness.spec.profile import LOCAL
from serve.generator import Generator
from serve.request import Parameters, Request
from tests.test_generator import Tokenizer
from tests.test_readme import blocks

PAGE = "docs/internals/extending.md"


def block(root: Path, tag: str) -> str:
    (text,) = [text for language, kind, text in blocks(root, PAGE) if (language, kind) == ("python", tag)]
    return text


@pytest.fixture
def made(root: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The block as a module where it belongs; taken away afterwards."""
    tag, name = request.param
    module = types.ModuleType(name)
    sys.modules[name] = module
    before = dict(RULES)
    exec(compile(block(root, tag), PAGE, "exec"), module.__dict__)
    yield module
    RULES.clear()
    RULES.update(before)
    del sys.modules[name]


@pytest.mark.parametrize("made", [("rule", "harness.rules.example")], indirect=True)
def test_a_rule(made: Any) -> None:
    def said(seconds: int) -> list[tuple[int, str]]:
        found = lint.lint("serving.properties", f"engine=Python\noption.predict_timeout={seconds}\n")
        return [(f.line, f.what) for f in found if f.rule == "example-timeout"]

    assert said(240) == [(2, "predict_timeout is 240")]
    assert said(55) == []


@pytest.mark.parametrize("made", [("engine", "serve.engines.repeating")], indirect=True)
def test_an_engine(made: Any) -> None:
    generator = Generator(made.load(Path(), Tokenizer()))
    asked = [Request(text=text, parameters=Parameters(max_new_tokens=3)) for text in ("abc", "bad", "a")]
    jobs = [job for request in asked for job in generator.submit((request,), float("inf"))]
    while not generator.idle:
        generator.step()
    assert [job.answer.text for job in jobs] == ["ccc", "ddd", ""]  # the token of "a" ends an answer here


@pytest.mark.parametrize("made", [("executor", "harness.executors.example")], indirect=True)
def test_an_executor(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "NAMES", (*executors.NAMES, "example"))
    executors.check_name("example")
    code = "import os; print('name', os.environ['EXAMPLE'])"
    log = tmp_path / "log"
    spec = ContainerSpec("one", "harness", "", tmp_path / "ml", log, entrypoint=(sys.executable, "-c", code))
    handle = executors.named("example").start(spec)
    assert executors.of(handle) is made
    while made.poll(handle) is None:
        time.sleep(0.05)
    made.remove(handle)
    assert "name one" in log.read_text()


@pytest.mark.parametrize("made", [("stack", "stack_example")], indirect=True)
def test_a_stack(made: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = "huggingface-pytorch-training-neuronx:9.9.9-py312-sdk9.9-ubuntu24.04"
    known = made.added((root / "harness" / "stacks.json").read_text(), "sdk9.9", train)
    rows = {name: stacks.Stack(name=name, **row) for name, row in json.loads(known).items()}
    monkeypatch.setattr(stacks, "all_stacks", lambda: rows)
    assert any(line.startswith(f"sdk9.9 train: {train}") for line in stacks.versions())
    path = runfile.find(Path("smollm2-sarcasm"))
    with pytest.raises(FileNotFoundError, match=r"sdk9\.9\.json"):  # step 2 is what is missing now
        checks.load(path, stacks.get("sdk9.9"))
    made_by_default = plans.make(
        checks.load(path, stacks.get(stacks.DEFAULT)), stacks.get(stacks.DEFAULT), LOCAL, "r"
    )
    assert made_by_default.stack == stacks.DEFAULT
