"""Who may do what: import cycles, and the few modules that start programs, make AWS clients or know a device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import grimp
import pytest

from tests import import_graph

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harness", "containers", "train", "serve")
# Package that is imported -> the only files that may. docs/internals/architecture.md says why.
ONLY_IN = {
    "subprocess": ("harness/shell.py", "harness/executors/", "containers/"),
    "boto3": ("harness/aws/session.py",),
    "torch_xla": ("train/devices/neuron.py",),
    "optimum": ("train/devices/neuron.py",),
    "transformers_neuronx": ("serve/engines/neuron.py",),
    "djl_python": ("serve/model.py",),
    "nicegui": ("harness/ui/pages.py", "harness/ui/server.py"),
}


@lru_cache(maxsize=1)
def imports() -> dict[str, list[tuple[str, str]]]:
    """File -> (top-level package, module) of everything that it imports, inside functions too."""
    found: dict[str, list[tuple[str, str]]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            names = list(_imported(ast.parse(path.read_text(encoding="utf-8"))))
            found[path.relative_to(ROOT).as_posix()] = [(name.partition(".")[0], name) for name in names]
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_where_it_belongs_and_nowhere_else(package: str) -> None:
    users = {file for file, names in imports().items() if any(top == package for top, _ in names)}
    assert users, f"nothing imports {package}: the rule has no effect any more"
    assert {file for file in users if not file.startswith(ONLY_IN[package])} == set()


def test_no_two_modules_import_each_other_by_whatever_way() -> None:
    graph = grimp.build_graph("harness", "containers", "train", "serve", cache_dir=None)
    cycles = {
        " -> ".join(chain)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if (chain := graph.find_shortest_chain(importer=imported, imported=module)) and not _inside(chain)
    }
    assert cycles == set()


def _inside(chain: tuple[str, ...]) -> bool:
    """Whether it is a package and its own modules: `__init__` may gather what they define."""
    return len({name.rpartition(".")[0] for name in chain} | {chain[0]}) == 1


def test_the_harness_takes_of_the_images_code_what_is_made_for_it() -> None:
    allowed = {
        "containers.contract",
        "containers.artifact",
        "containers.families",
        "containers.hyperparameters",
        "containers.model_dir",
        "containers.rows",
        "serve.options",
        "containers",
        "serve",
    }
    taken = {
        (file, name)
        for file, names in imports().items()
        for top, name in names
        if file.startswith("harness/") and top in ("containers", "train", "serve") and name not in allowed
    }
    assert taken == set()


def test_the_product_reads_no_file_of_its_tests_or_docs() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.BinOp)
                    and isinstance(node.op, ast.Div)
                    and isinstance(node.right, ast.Constant)
                ):
                    assert node.right.value not in ("tests", "docs", "shared"), f"{path}:{node.lineno}"


def test_the_architecture_page_has_the_layers_of_the_code(root: Path) -> None:
    page = (root / "docs" / "internals" / "architecture.md").read_text(encoding="utf-8")
    block = page.partition("```text layers\n")[2].partition("```")[0]
    assert [layer.split(",") for layer in "".join(block.split()).split(">")] == import_graph.layers()


def test_every_import_of_the_harness_goes_down() -> None:
    level = {part: number for number, layer in enumerate(import_graph.layers()) for part in layer}
    found = import_graph.imports()
    assert set(level) | {*import_graph.IMAGES, "__main__"} == set(found)
    up = {(part, o) for part, others in found.items() for o in others if level.get(o, 99) <= level.get(part, -1)}
    assert up == set()
