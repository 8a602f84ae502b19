"""Every `harness` line in a block of the docs names a verb and options that there are; what asks nobody is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli.main import app
from tests.test_readme import blocks

DOCS = [
    "README.md",
    *(f"docs/{n}.md" for n in ("chats-and-lora", "spot-and-clean-up", "ui")),
    *(f"docs/{n}.md" for n in ("quickstart", "lab", "aws", "images", "local-sagemaker", "neuron-host", "verify")),
]


def lines(root: Path, name: str) -> list[list[str]]:
    """The words of each command line that begins with harness, without its comment."""
    text = "".join(text for language, _, text in blocks(root, name) if language in ("sh", "text"))
    # What a text block says behind a command stands after two spaces.
    found = re.findall(r"^ *(?:\.venv/bin/)?harness +(\S.*)$", text, re.MULTILINE)
    return [shlex.split(re.split(r"   +| #", line)[0] if line.startswith("verify") else line, True) for line in found]


@pytest.mark.parametrize("name", DOCS)
def test_commands_in_the_docs_exist(root: Path, name: str) -> None:
    group = typer.main.get_command(app)
    found = lines(root, name)
    assert found, "no line was read"
    for words in found:
        command: Any = group
        rest = list(words)
        while hasattr(command, "commands"):
            alternatives = rest.pop(0).split("|")
            assert set(alternatives) <= set(command.commands), (name, words)
            command = command.commands[alternatives[0]]
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, (name, words)


def test_the_plan_for_aws_asks_nobody(root: Path, tmp_path: Path) -> None:
    (profile,) = [text for language, _, text in blocks(root, "docs/aws.md") if language == "toml"]
    (tmp_path / "neuron-harness").mkdir()
    (tmp_path / "neuron-harness" / "profile.toml").write_text(profile)
    (words,) = [words for words in lines(root, "docs/aws.md") if words[0] == "plan"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words, "--json"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "XDG_CONFIG_HOME": str(tmp_path), "HOME": "/none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["create_training_job"]
    assert job["VpcConfig"]["Subnets"] == ["subnet-0123456789abcdef0"]
    assert job["OutputDataConfig"]["S3OutputPath"].startswith("s3://neuron-harness-123456789012-us-west-2/runs/")
