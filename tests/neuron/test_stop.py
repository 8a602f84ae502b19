"""Two workers, one signal, and the training image's torch 2.1.2: tests/chain/test_workers.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain.conftest import tiny_model  # noqa: F401 (a fixture)
from tests.chain.test_workers import group_signal, starter


@pytest.mark.neuron
def test_torchrun_outlives_the_signal_that_the_whole_group_gets(tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    group_signal(starter(".venv-neuron", tiny_model, tmp_path)(steps=400), tmp_path)
