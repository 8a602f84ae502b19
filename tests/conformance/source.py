"""Names and signatures of packages, read from their source; nothing is imported, so their weight does not matter.

A Tree is a list of site-packages directories, source directories and jars. `resolve` follows imports (also relative,
star and TYPE_CHECKING ones, which is how transformers and optimum-neuron declare what their lazy modules offer) to
the definition; a class's members are looked for along its bases, those that methods assign to self included.
"""

from __future__ import annotations

import ast
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Entity:
    """What a name stands for. `node` is a class's or function's definition."""

    kind: str  # module, class, function, value
    module: str
    name: str = ""
    node: ast.AST | None = field(default=None, compare=False, repr=False)


@dataclass
class Signature:
    names: list[str]  # that may be given by position
    keyword_only: list[str]
    any_position: bool
    any_keyword: bool
    literals: set[str]  # keywords that the body takes out of **kwargs by name

    def takes(self, keyword: str) -> bool:
        return (
            keyword in self.names or keyword in self.keyword_only or (self.any_keyword and keyword in self.literals)
        )


class Tree:
    def __init__(self, *roots: Path) -> None:
        self.roots = roots
        self._modules: dict[str, Module | None] = {}
        self._texts: dict[str, str] = {}
        self._jars = {root: zipfile.ZipFile(root) for root in roots if root.suffix in (".jar", ".whl")}
        self._names = {root: frozenset(jar.namelist()) for root, jar in self._jars.items()}

    def module(self, dotted: str) -> Module | None:
        if dotted not in self._modules:
            self._modules[dotted] = self._find(dotted)
        return self._modules[dotted]

    def _find(self, dotted: str) -> Module | None:
        stem = dotted.replace(".", "/")
        for root in self.roots:
            for relative in (f"{stem}/__init__.py", f"{stem}.py"):
                text = self._read(root, relative)
                if text is not None:
                    # A stub beside it says what a compiled module offers (safetensors).
                    text += "\n" + (self._read(root, f"{relative}i") or "")
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # another package's "\\w" is not ours to mend
                        return Module(dotted, ast.parse(text), relative.endswith("__init__.py"))
        if any(root.is_dir() and (root / stem).is_dir() for root in self.roots):
            return Module(dotted, ast.parse(""), True)  # a namespace package
        return None

    def _read(self, root: Path, relative: str) -> str | None:
        if root in self._jars:
            return self._jars[root].read(relative).decode() if relative in self._names[root] else None
        path = root / relative
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def resolve(self, dotted: str) -> Entity | None:
        """The definition behind a dotted name, or None."""
        parts = dotted.split(".")
        for cut in range(len(parts), 0, -1):
            if self.module(".".join(parts[:cut])) is not None:
                break
        else:
            return None
        entity: Entity | None = Entity("module", ".".join(parts[:cut]))
        for name in parts[cut:]:
            entity = self.member(entity, name) if entity else None
        return entity

    def member(self, entity: Entity, name: str) -> Entity | None:
        if entity.kind == "module":
            return self._of_module(entity.module, name, frozenset())
        if entity.kind == "class":
            return self._of_class(entity, name)
        return None

    def _of_module(self, dotted: str, name: str, seen: frozenset[tuple[str, str]]) -> Entity | None:
        module = self.module(dotted)
        if module is None or (dotted, name) in seen:
            return None
        seen |= {(dotted, name)}
        for bound in module.bindings.get(name, []):
            found = self._bound(module, bound, name, seen)
            if found is not None:
                return found
        for source in module.stars:
            if not self._may_have(source, name):
                continue
            found = self._of_module(source, name, seen)
            if found is not None:
                return found
        return Entity("module", f"{dotted}.{name}") if self.module(f"{dotted}.{name}") else None

    def _may_have(self, dotted: str, name: str) -> bool:
        """False where the text shows that a module does not offer the name: parsing thousands takes long."""
        if dotted not in self._texts:
            stem = dotted.replace(".", "/")
            files = (f"{stem}/__init__.py", f"{stem}.py")
            found = (self._read(root, file) for root in self.roots for file in files)
            self._texts[dotted] = next((text for text in found if text is not None), "")
        return name in self._texts[dotted] or "import *" in self._texts[dotted]

    def _bound(self, module: Module, bound: ast.AST, name: str, seen: frozenset[tuple[str, str]]) -> Entity | None:
        if isinstance(bound, ast.ClassDef):
            return Entity("class", module.dotted, name, bound)
        if isinstance(bound, Function):
            return Entity("function", module.dotted, name, bound)
        if isinstance(bound, ast.ImportFrom):
            source = module.absolute(bound)
            original = next(a.name for a in bound.names if (a.asname or a.name) == name)
            found = self._of_module(source, original, seen)
            return found or (
                Entity("module", f"{source}.{original}") if self.module(f"{source}.{original}") else None
            )
        if isinstance(bound, ast.Import):
            original = next(
                a.name if a.asname else a.name.partition(".")[0]
                for a in bound.names
                if name in (a.asname, a.name.partition(".")[0])
            )
            return Entity("module", original) if self.module(original) else None
        return Entity("value", module.dotted, name, bound)

    def bases(self, entity: Entity) -> Iterator[Entity]:
        """A class and what it inherits from, nearest first; bases that no root has are left out."""
        seen: set[tuple[str, str]] = set()

        def walk(one: Entity) -> Iterator[Entity]:
            if (one.module, one.name) in seen or not isinstance(one.node, ast.ClassDef):
                return
            seen.add((one.module, one.name))
            yield one
            for base in one.node.bases:
                found = self.named_in(one.module, base)
                if found is not None and found.kind == "class":
                    yield from walk(found)

        yield from walk(entity)

    def named_in(self, module: str, expression: ast.expr) -> Entity | None:
        """What an expression like `a.b.C` or `C[T]` means in a module."""
        if isinstance(expression, ast.Subscript):
            return self.named_in(module, expression.value)
        dotted = ast.unparse(expression).split(".")
        entity = self._of_module(module, dotted[0], frozenset())
        for name in dotted[1:]:
            entity = self.member(entity, name) if entity else None
        return entity

    def _of_class(self, entity: Entity, name: str) -> Entity | None:
        for base in self.bases(entity):
            assert isinstance(base.node, ast.ClassDef)
            for statement in _statements(base.node.body):
                if isinstance(statement, Function) and statement.name == name:
                    prop = any("property" in ast.unparse(d).lower() for d in statement.decorator_list)
                    return Entity("value" if prop else "function", base.module, f"{base.name}.{name}", statement)
                if name in _assigned(statement):
                    return Entity("value", base.module, f"{base.name}.{name}", statement)
            for node in ast.walk(base.node):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and node.attr == name
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                ):
                    return Entity("value", base.module, f"{base.name}.{name}", node)
        return None

    def signature(self, entity: Entity) -> Signature | None:
        """What a call of the function or class takes; None where the source does not say."""
        if entity.kind == "class":
            return self._of_constructor(entity)
        if entity.kind == "value" or not isinstance(entity.node, Function):
            return None
        static = any(ast.unparse(d) == "staticmethod" for d in entity.node.decorator_list)
        return _signature(entity.node, method="." in entity.name and not static)

    def _of_constructor(self, entity: Entity) -> Signature | None:
        fields: list[str] = []
        for base in self.bases(entity):
            assert isinstance(base.node, ast.ClassDef)
            for statement in base.node.body:
                if isinstance(statement, Function) and statement.name == "__init__":
                    return _signature(statement, method=True)
            if any("dataclass" in ast.unparse(d) for d in base.node.decorator_list):
                fields += [n for s in base.node.body if isinstance(s, ast.AnnAssign) for n in _assigned(s)]
        return Signature(fields, [], False, False, set()) if fields else None


@dataclass
class Module:
    dotted: str
    tree: ast.Module
    package: bool

    def absolute(self, node: ast.ImportFrom) -> str:
        parts = self.dotted.split(".")
        up = parts[: len(parts) - node.level + (1 if self.package else 0)] if node.level else []
        return ".".join([*up, *([node.module] if node.module else [])])

    @cached_property
    def bindings(self) -> dict[str, list[ast.AST]]:
        """Everything that binds a name at module level: definitions first, then imports, then assignments."""
        ranked: list[tuple[int, str, ast.AST]] = []
        for node in _statements(self.tree.body):
            if isinstance(node, (ast.ClassDef, *Function)):
                ranked.append((0, node.name, node))
            elif isinstance(node, ast.ImportFrom):
                ranked += [(1, a.asname or a.name, node) for a in node.names if a.name != "*"]
            elif isinstance(node, ast.Import):
                ranked += [(2, a.asname or a.name.partition(".")[0], node) for a in node.names]
            else:
                ranked += [(3, name, node) for name in _assigned(node)]
        out: dict[str, list[ast.AST]] = {}
        for _, name, node in sorted(ranked, key=lambda row: row[0]):
            out.setdefault(name, []).append(node)
        return out

    @cached_property
    def stars(self) -> list[str]:
        nodes = [n for n in _statements(self.tree.body) if isinstance(n, ast.ImportFrom)]
        return [self.absolute(n) for n in nodes if any(a.name == "*" for a in n.names)]


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, also those under if, try and with."""
    for node in body:
        yield node
        for name in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from _statements(getattr(node, name, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _assigned(node: ast.AST) -> list[str]:
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    return [t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)]


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> Signature:
    a = node.args
    names = [x.arg for x in (*a.posonlyargs, *a.args)][1 if method else 0 :]
    literals: set[str] = set()
    if a.kwarg:
        keys = a.kwarg.arg
        for part in ast.walk(node):
            if (
                isinstance(part, ast.Call)
                and isinstance(part.func, ast.Attribute)
                and part.func.attr in ("pop", "get", "setdefault")
                and ast.unparse(part.func.value) == keys
            ):
                literals |= {
                    x.value for x in part.args[:1] if isinstance(x, ast.Constant) and isinstance(x.value, str)
                }
            if isinstance(part, ast.Subscript) and ast.unparse(part.value) == keys:
                literals |= {part.slice.value} if isinstance(part.slice, ast.Constant) else set()
    return Signature(names, [x.arg for x in a.kwonlyargs], a.vararg is not None, a.kwarg is not None, literals)
