"""The double with one thing changed, held against the table: `python -m tests.tnx.mutants DIR` in .venv-serve.

found.json says for each change which groups of calls came out in another way; none means that the table would not
notice. Each runs in a fork of its own, after the imports.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import torch

from tests.tnx import calls, double, tiny
from tests.tnx.device import Echo

AT_ONCE = 2
# name -> (what stands in double.py, what is put there)
MUTANTS = {
    "rows in the order of start_ids": ("len(start_ids) == slots", "len(start_ids) == -1"),
    "a prompt of one token is a prompt": ("input_ids.shape[1] > 1", "input_ids.shape[1] >= 1"),
    "the last column is the last token": ("cache_ids.max(dim=1).values", "cache_ids[:, -1]"),
    "a prompt of a bucket's width goes to the next": ("if b >= width", "if b > width"),
    "a decode step at a bucket's edge stays": ("if n > int(cache_ids.max())", "if n >= int(cache_ids.max())"),
    "slots left out are written elsewhere": (
        "torch.zeros(slots, 1, dtype=ids.dtype).scatter_(0, place, cache_ids)",
        "torch.ones(slots, 1, dtype=ids.dtype).scatter_(0, place, cache_ids)",
    ),
    "positions are counted anew": ("cache_ids if width == bucket else", "None if width == bucket else"),
    "slots may differ from batch_size": ("assert not batching or", "assert True or"),
    "a missing graph is compiled": (
        "kernel.neff_bytes = (self.compiled / _file_of(kernel)).read_bytes()",
        "file = self.compiled / _file_of(kernel); "
        "kernel.neff_bytes = file.read_bytes() if file.exists() else kernel.compile()",
    ),
    "the newer name is not known": ('kwargs.get("max_num_seqs") is not None', "False"),
    "every kind of model is taken": ("assert kind in SUPPORTED", "assert kind"),
    "unknown keywords of NeuronConfig are taken": (
        "unknown = set(kwargs) - set(_NEURON_KEYWORDS)",
        "unknown = set()\n        kwargs = {k: v for k, v in kwargs.items() if k in _NEURON_KEYWORDS}",
    ),
    "saving works before to_neuron": ("if self.kernels is None:\n            raise", "if False:\n            raise"),
    "context buckets as the token buckets": ("[n // 2 for n in token_buckets]", "list(token_buckets)"),
}


def changed(name: str) -> types.ModuleType:
    source = Path(double.__file__).read_text(encoding="utf-8")
    before, after = MUTANTS[name]
    assert source.count(before) == 1, f"{name}: {source.count(before)} times in double.py"
    module = types.ModuleType("changed")
    module.__file__ = double.__file__
    sys.modules["changed"] = module
    exec(compile(source.replace(before, after), double.__file__, "exec"), vars(module))
    return module


def differing(name: str, work: Path) -> list[str]:
    tnx = changed(name).install(lambda m: Echo(m.batch_sizes[0], max(m.token_buckets)))
    tiny.write(work / "model")
    found = json.loads(json.dumps(calls.outcomes(tnx, work / "model", work)))
    return sorted(group for group, outcome in double.TABLE["outcomes"].items() if found[group] != outcome)


def start(number: int, name: str, work: Path) -> int:
    """A process that writes which groups of calls came out in another way."""
    folder = work / str(number)
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (folder / "differing.json").write_text(json.dumps(differing(name, folder)))
            code = 0
        except Exception as error:  # noqa: BLE001 (it is seen, too)
            (folder / "differing.json").write_text(json.dumps([f"{type(error).__name__}: {error}"]))
            code = 0
        finally:
            os._exit(code)
    return pid


def main(work: Path) -> None:
    torch.set_num_threads(1)  # in each of two processes at a time
    running: set[int] = set()
    for number, name in enumerate(MUTANTS):
        if len(running) == AT_ONCE:
            _wait(running)
        running.add(start(number, name, work))
    while running:
        _wait(running)
    found = {
        name: json.loads((work / str(number) / "differing.json").read_text()) for number, name in enumerate(MUTANTS)
    }
    (work / "found.json").write_text(json.dumps(found))


def _wait(running: set[int]) -> None:
    pid, status = os.wait()
    running.discard(pid)
    assert status == 0, pid


if __name__ == "__main__":
    main(Path(sys.argv[1]))
