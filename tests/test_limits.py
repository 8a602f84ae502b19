"""harness/verify/limits.json has an entry for every Neuron-touching name in the code, and none for anything else.

docs/limits.md is made from it (tests/generated.py); its column `where` is what the search here finds.
"""

from __future__ import annotations

import ast
import re

from harness.verify.report import limits
from tests import generated
from tests.conformance import uses

FIELDS = {"name", "checked", "unverified", "settled_by"}
NEURON = ("optimum", *uses.NEURON_ONLY)
# In train/launch.py and both files named neuron.py every variable of the environment is the SDK's or torchrun's.
WHOLLY = ("train/launch.py", "train/devices/neuron.py", "serve/engines/neuron.py")
VARIABLE = re.compile(r"\b(?:RUN_)?NEURON_(?!HARNESS_)[A-Z0-9_]*[A-Z0-9]\b")
OTHER = re.compile(r"[A-Z]+(?:_[A-Z0-9]+)+|neuron_[a-z_]+|/sys/class/\w+")
# A name in a text: what a pickle refers to, a module that is looked for.
DOTTED = re.compile(rf"(?:{'|'.join(NEURON)})(?:\.\w+)+")


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


def places() -> dict[str, set[str]]:
    """Name -> the files that use it, those that are not Python included."""
    names = found(uses.files())
    for name, files in in_containers().items():
        names.setdefault(name, set()).update(files)
    return names


def test_every_neuron_touching_name_has_an_entry_and_every_entry_a_name() -> None:
    in_code, listed = places(), [row["name"] for row in limits()["names"]]
    assert sorted(in_code.keys() - set(listed)) == [], "in the code, without an entry in limits.json"
    assert sorted(set(listed) - in_code.keys()) == [], "in limits.json, no longer in the code"
    assert listed == sorted(set(listed)), "a name is there twice, or they are not sorted"


def test_no_field_is_empty() -> None:
    assert [row for row in limits()["names"] if row.keys() != FIELDS or not all(row.values())] == []
    assert all(limits()["general"])


def test_the_page_has_every_entry_and_where_its_name_stands() -> None:
    page = generated.limits_page()
    assert (uses.ROOT / "docs" / "limits.md").read_text(encoding="utf-8") == page, "run: make generated"
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert {row[0].strip(" `"): set(re.findall(r"`([^`]+)`", row[1])) for row in rows} == places()


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
