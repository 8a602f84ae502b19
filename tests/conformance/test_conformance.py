"""Every name, member and keyword of other packages that our code uses exists in the pinned version's source."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from functools import lru_cache

import pytest

from tests.conformance import uses
from tests.conformance.source import Entity, Signature, Tree
from tests.conformance.uses import ROOT, Use

# Whose versions hold for which part of our code.
ENVIRONMENTS = {"train": ".venv-train", "serve": ".venv-serve", "containers": ".venv-train", "harness": ".venv"}
JAR = ROOT / ".cache" / "djl" / "0.34.0" / "python-0.34.0.jar"
# These hand **kwargs on to something that the source names only at run time.
HANDS_ON = {
    "from_pretrained": (
        "transformers.PreTrainedModel.from_pretrained",
        "transformers.PreTrainedTokenizerBase.__init__",
    ),
    "generate": ("transformers.GenerationConfig.__init__",),
}
# Members that the class makes at run time, or that the models and configurations we serve have: where they stand.
ELSEWHERE = {
    "transformers.PreTrainedTokenizerBase.eos_token_id": "transformers.SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES",
    "transformers.PreTrainedTokenizerBase.pad_token_id": "transformers.SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES",
    "transformers.PreTrainedTokenizerBase.eos_token": "transformers.SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES",
    "transformers.PreTrainedTokenizerBase.pad_token": "transformers.SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES",
    "transformers.PreTrainedModel.get_decoder": "transformers.LlamaForCausalLM.get_decoder",
    "transformers.PretrainedConfig.use_cache": "transformers.LlamaConfig.use_cache",
}
# Classes that take the keywords of a table of theirs: where it stands.
TABLES = {"botocore.config.Config": "botocore.config.Config.OPTION_DEFAULTS"}
# Keywords that an override of ours adds, because upstream lacks them: evaluation of 0.0.28 raises TypeError.
ADDED = {("optimum.neuron.NeuronTrainer.compute_loss", "return_outputs")}
USES = [use for reader in uses.read(uses.CHECKED, uses.files()) for use in reader.uses()]


@lru_cache
def tree(part: str) -> Tree:
    environment = ROOT / ENVIRONMENTS[part]
    packages = next(environment.glob("lib/python*/site-packages"), None)
    assert packages is not None, f"{environment.name} is missing: make setup"
    assert part != "serve" or JAR.is_file(), f"{JAR.name} is missing: make setup"
    return Tree(packages, *([JAR] if part == "serve" else []))


def look_up(source: Tree, dotted: str, elsewhere: Mapping[str, str] = ELSEWHERE) -> Entity | None:
    """The definition. Of what a value holds the source says nothing: the value itself stands for it."""
    # Elsewhere first: that a name is nowhere takes long to find out.
    found = source.resolve(elsewhere.get(dotted, dotted)) or source.resolve(dotted)
    owner = dotted.rpartition(".")[0]
    while found is None and "." in owner:
        above = source.resolve(owner)
        if above is not None:
            return above if above.kind == "value" else None
        owner = owner.rpartition(".")[0]
    return found


def misfit(source: Tree, use: Use, elsewhere: Mapping[str, str] = ELSEWHERE) -> str | None:
    """Why the source does not have what our code uses; None if it has. `elsewhere`: name -> where else it stands."""
    found = [(name, entity) for name in use.name if (entity := look_up(source, name, elsewhere)) is not None]
    if not found:
        return f"{use.name[0]} does not exist"
    name, entity = found[0]
    signature = source.signature(entity) if use.kind != "name" else None
    if signature is None:
        return None
    if not signature.any_position and use.positional > len(signature.names):
        return f"{name} takes {len(signature.names)} arguments by position, not {use.positional}"
    return next((f"{name} takes no {k}" for k in use.keywords if not _takes(source, name, signature, k, use)), None)


def _takes(source: Tree, name: str, signature: Signature, keyword: str, use: Use) -> bool:
    if use.kind == "override" and (name, keyword) in ADDED:
        return True
    if signature.takes(keyword) or (use.kind == "override" and signature.any_keyword):
        return True
    if not signature.any_keyword:
        return False
    if name in TABLES:
        return keyword in words(source, TABLES[name])
    others = [source.resolve(other) for other in HANDS_ON.get(name.rpartition(".")[2], ())]
    return any(s is not None and s.takes(keyword) for s in (source.signature(o) for o in others if o))


def words(source: Tree, table: str) -> set[str]:
    """Every string in the definition of `table`."""
    found = source.resolve(table)
    assert found is not None and found.node is not None, f"{table} does not exist"
    return {n.value for n in ast.walk(found.node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@pytest.mark.server
@pytest.mark.parametrize("use", USES, ids=str)
def test_exists_in_the_pinned_source(use: Use) -> None:
    assert misfit(tree(uses.root(use.file.replace("/", "."))), use) is None


@pytest.mark.server
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("train/devices/neuron.py", "attn_implementation=", "attn_implementatoin="),
        ("train/devices/neuron.py", "dataloader_pin_memory", "dataloader_pin_memroy"),
        ("train/devices/neuron.py", "def get_eval_dataloader", "def get_eval_dataloaders"),
        ("train/devices/neuron.py", "self.train_dataset", "self.train_datasets"),
        ("train/devices/neuron.py", "lazy_load_for_parallelism", "lazily_load_for_parallelism"),
        ("train/channels.py", "token=token", "tokn=token"),
        ("serve/engines/cpu.py", "AutoModelForCausalLM.from_pretrained", "AutoModelForCausalLM.of_pretrained"),
        ("serve/engines/llama.py", "import safe_open", "import safely_open"),
        ("serve/model.py", "batch_index=", "batch_indices="),
        ("serve/model.py", "inputs.get_batches", "inputs.batches"),
        ("harness/spec/service_model.py", "load_service_model", "load_servicemodel"),
    ],
)
def test_a_misspelling_is_found(file: str, right: str, wrong: str) -> None:
    sources = uses.files()
    assert right in sources[file]
    sources[file] = sources[file].replace(right, wrong)
    reader = next(r for r in uses.read(uses.CHECKED, sources) if r.file == file)
    source = tree(uses.root(file.replace("/", ".")))
    assert [use for use in reader.uses() if misfit(source, use) is not None]


def test_no_import_escapes() -> None:
    """Each import is of a package we know of; each of a checked package gives a use; none is made from a string."""
    sources = uses.files()
    known = {*uses.CHECKED, *uses.NEURON_ONLY, *uses.OTHERS, *uses.OURS, *sys.stdlib_module_names}
    line = re.compile(rf"^\s*(?:from|import)\s+({'|'.join(uses.CHECKED)})\b", re.M)
    for reader in uses.read(uses.CHECKED, sources):
        assert {uses.root(name) for name in reader.imported} <= known, reader.file
        used = {name for use in reader.uses() for name in use.name}
        assert {n for n in reader.imported if uses.root(n) in uses.CHECKED} <= used, reader.file
        assert set(line.findall(sources[reader.file])) <= {uses.root(n) for n in reader.imported}, reader.file
        for node in (n for n in ast.walk(reader.tree) if isinstance(n, ast.Call)):
            if ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__", "find_spec"):
                text = ast.unparse(node)
                assert not any(re.search(rf"['\"]{package}\b", text) for package in uses.CHECKED), text


def test_every_result_of_a_package_is_explained() -> None:
    assert [line for r in uses.read(uses.CHECKED + uses.NEURON_ONLY, uses.files()) for line in r.unknown()] == []


def test_every_explanation_is_of_something_in_the_code() -> None:
    sources = uses.files()
    for file, expressions in uses.HOLDS.items():
        there = {ast.unparse(n) for n in ast.walk(ast.parse(sources[file])) if isinstance(n, ast.expr)}
        there |= {n.arg for n in ast.walk(ast.parse(sources[file])) if isinstance(n, ast.arg)}
        assert expressions.keys() <= there, file
