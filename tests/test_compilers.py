"""How many compilers run at once, and that the engine's steps are the library's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve import compilers
from serve.compilers import GIB, at_once, available_memory


@pytest.mark.parametrize(
    ("graphs", "available", "processors", "expected"),
    [
        (8, 12 * GIB, 4, 1),  # inf2.xlarge: the library would start 8
        (8, 120 * GIB, 32, 8),  # inf2.8xlarge
        (8, 0, 4, 1),
        (24, 700 * GIB, 192, 24),
        (24, 700 * GIB, 2, 2),
    ],
)
def test_as_many_as_memory_processors_and_graphs_allow(
    graphs: int, available: int, processors: int, expected: int
) -> None:
    assert at_once(graphs, available, processors) == expected


def test_a_containers_own_limit_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:   1048576 kB\n")
    assert available_memory(meminfo, tmp_path) == GIB
    (tmp_path / "memory.current").write_text("100\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == GIB
    (tmp_path / "memory.max").write_text("1100\n")
    assert available_memory(meminfo, tmp_path) == 1000
    (tmp_path / "memory.max").write_text("50\n")
    assert available_memory(meminfo, tmp_path) == 0


class Library:
    """The calls in their order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> list[int]:
            self.calls.append((name, *args, *kwargs.items()))
            return [0] * 8

        return call


def test_the_steps_are_to_neurons_and_a_prepared_artifact_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "available_memory", lambda: 17 * GIB)
    monkeypatch.setattr(compilers.os, "sched_getaffinity", lambda _: set(range(4)))
    model = Library()
    compilers.to_device(model, None)
    compile_call = ("compile", ("parallel_degree", 2))
    assert model.calls == [("load_weights",), ("_get_all_kernels",), compile_call, ("setup",)]
    prepared = Library()
    compilers.to_device(prepared, Path("/prepared"))
    assert prepared.calls == [("load", "/prepared"), ("to_neuron",)]
