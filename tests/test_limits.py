"""docs/limits.md has a row for every Neuron-touching name in the code, and no row for anything else."""

from __future__ import annotations

import ast
import re

from tests.conformance import uses

DOCUMENT = uses.ROOT / "docs" / "limits.md"
NEURON = ("optimum", *uses.NEURON_ONLY)
# In train/launch.py and both files named neuron.py every variable of the environment is the SDK's or torchrun's.
WHOLLY = ("train/launch.py", "train/devices/neuron.py", "serve/engines/neuron.py")
VARIABLE = re.compile(r"\b(?:RUN_)?NEURON_(?!HARNESS_)[A-Z0-9_]*[A-Z0-9]\b")
OTHER = re.compile(r"[A-Z]+(?:_[A-Z0-9]+)+|neuron_[a-z_]+|/sys/class/\w+")
# A name in a text: what a pickle refers to, a module that is looked for.
DOTTED = re.compile(rf"(?:{'|'.join(NEURON)})(?:\.\w+)+")
HEAD = "| name | where | how it was checked | what remains unverified | settled by `harness verify` step |"


def found(sources: dict[str, str]) -> dict[str, set[str]]:
    """Name -> the files that use it."""
    out: dict[str, set[str]] = {}
    for reader in uses.read(NEURON, sources):
        for use in reader.uses():
            keywords = use.keywords if use.kind == "call" else ()
            for name in (use.name[0], *(f"{use.name[0]}({k}=)" for k in keywords)):
                out.setdefault(name, set()).add(reader.file)
        for node in ast.walk(reader.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = set(VARIABLE.findall(node.value))
                names |= {node.value} if DOTTED.fullmatch(node.value) else set()
                if reader.file in WHOLLY and OTHER.fullmatch(node.value):
                    names.add(node.value)
                for name in names:
                    out.setdefault(name, set()).add(reader.file)
    return out


def in_containers() -> dict[str, set[str]]:
    """The SDK's variables in what is no Python there: Dockerfiles, scripts."""
    out: dict[str, set[str]] = {}
    for path in (uses.ROOT / "containers").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            for name in VARIABLE.findall(path.read_text(encoding="utf-8")):
                out.setdefault(name, set()).add(path.relative_to(uses.ROOT).as_posix())
    return out


def rows() -> dict[str, list[str]]:
    """Name -> the other cells of its row."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert HEAD in text
    lines = text.partition(HEAD)[2].splitlines()[2:]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len({row[0] for row in table}) == len(table), "a name has two rows"
    return {row[0].strip("`"): row[1:] for row in table}


def test_every_neuron_touching_name_has_a_row_and_every_row_a_name() -> None:
    names, table = found(uses.files()), rows()
    for name, places in in_containers().items():
        names.setdefault(name, set()).update(places)
    assert sorted(names.keys() - table.keys()) == [], "in the code, without a row in docs/limits.md"
    assert sorted(table.keys() - names.keys()) == [], "in docs/limits.md, no longer in the code"
    wrong = {n: table[n][0] for n in names if set(re.findall(r"`([^`]+)`", table[n][0])) != names[n]}
    assert wrong == {}, "the column `where` names other files than the search"


def test_no_cell_is_empty() -> None:
    assert [name for name, cells in rows().items() if len(cells) != 4 or not all(cells)] == []


def test_the_search_sees_a_new_import_attribute_keyword_and_variable() -> None:
    text = "import torch_neuronx\ntorch_neuronx.trace(f, workdir=w)\nX = 'NEURON_RT_NEW'\nY = 'NEURON_HARNESS_X'\n"
    text += "Z = 'torch_xla.core.new'\n"
    names = {
        "torch_xla.core.new",
        "torch_neuronx",
        "torch_neuronx.trace",
        "torch_neuronx.trace(workdir=)",
        "NEURON_RT_NEW",
    }
    assert found({"containers/new.py": text}).keys() == names
