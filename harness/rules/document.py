"""A file as the rules see it: facts with lines, whatever its format.

Properties, environment variables, arguments, images, instances and packages are found in serving.properties,
Dockerfiles, shell scripts, Python, notebooks, YAML and JSON, and in files inside files: a heredoc, `%%writefile`, a
string, a YAML block. Nothing is executed and nothing is imported; what cannot be read is passed over.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PROPERTY, ENV, ARG, IMAGE, INSTANCE, PACKAGE, CALL = "property", "env", "arg", "image", "instance", "package", "call"
MAX_TEXT = 5_000_000  # characters; a notebook with images can be large, a launch script is not

INSTANCE_TYPE = re.compile(r"\b(?:ml\.)?(?:trn1n?|trn2u?|trn3|inf1|inf2)\.(?:\d*x?large|metal)\b")
IMAGE_NAME = re.compile(
    r"(?:[\w.{}$-]+/)*(?:pytorch-(?:training|inference)(?:-vllm)?-neuronx|huggingface-(?:pytorch-(?:training|inference)"
    r"|vllm-inference)-neuronx|huggingface-pytorch-tgi-inference|djl-inference|djl-serving|neuronx-tgi|jax-training-neuronx)"
    r":[\w.-]+"
)
PROPERTY_LINE = re.compile(
    r"^[\s\"']*((?:option\.[\w.]+)|engine|job_queue_size|batch_size|max_batch_delay|minWorkers|"
    r"maxWorkers|load_on_devices|gpu\.\w+|nc\.\w+)\s*[=:]\s*([^\n\"']*?)\s*(?:\\n)?[\"',]*\s*$"
)
SHELL_ASSIGN = re.compile(r"^(?:export\s+)?([A-Za-z_]\w*)=(.*)$", re.DOTALL)
FLAG = re.compile(r"^--?([A-Za-z][\w.-]*)(?:=(.*))?$", re.DOTALL)


@dataclass(frozen=True)
class Fact:
    """One thing that a file says: `kind` of thing, its name, its value as text, and the line (from 1)."""

    kind: str
    name: str
    value: str
    line: int


@dataclass
class Document:
    """A file's facts. `text` is the file, or what stands for its text in a notebook."""

    path: str
    kind: str
    text: str = ""
    facts: list[Fact] = field(default_factory=list)

    def add(self, kind: str, name: str, value: object, line: int) -> None:
        self.facts.append(Fact(kind, name, str(value), line))

    def all(self, kind: str, *names: str) -> list[Fact]:
        """Facts of a kind, of these names if any are given."""
        return [f for f in self.facts if f.kind == kind and (not names or f.name in names)]

    def settings(self, *names: str) -> list[Fact]:
        """Arguments, properties (without "option.") and OPTION_ variables of these names, in lower snake case."""
        return [f for f in self.facts if f.kind in (ARG, PROPERTY, ENV) and setting_name(f) in names]

    def has(self, *words: str) -> bool:
        return any(word in self.text for word in words)


def setting_name(fact: Fact) -> str:
    name = fact.name.lower().replace("-", "_")
    if fact.kind == PROPERTY:
        return name.removeprefix("option.")
    return name.removeprefix("option_") if fact.kind == ENV else name


UNKNOWN = "<expression>"
"""The value of a setting that is there, but is computed."""


def whole_number(text: str) -> int | None:
    """The value as a whole number, or None: "max", a variable, an expression."""
    match = re.fullmatch(r"[\"']?(\d{1,9})[\"']?", text.strip())
    return int(match.group(1)) if match else None


def truthy(text: str) -> bool:
    return text.strip().strip("\"'").lower() in ("true", "1", "yes", "on", "")


# Reading ------------------------------------------------------------------------------------------------------------


def read(path: str, text: str) -> Document:
    """The document in `text`; its format by name first, then by content. Never raises for a strange file."""
    text = text[:MAX_TEXT].removeprefix("\ufeff")
    kind = kind_of(path, text)
    document = Document(path, kind, text)
    readers = {
        "notebook": _notebook,
        "python": _python,
        "dockerfile": _dockerfile,
        "requirements": _requirements,
        "yaml": _yaml,
        "json": _json,
        "shell": _shell,
    }
    if kind in readers:
        readers[kind](document, text, 0)
    if kind != "notebook":  # a notebook's lines are JSON strings; its cells are scanned one by one
        _scan(document, text, 0)
    seen: dict[Fact, None] = dict.fromkeys(document.facts)
    document.facts = sorted(seen, key=lambda f: f.line)
    return document


SUFFIXES = {
    "ipynb": "notebook",
    "py": "python",
    "yaml": "yaml",
    "yml": "yaml",
    "json": "json",
    "sh": "shell",
    "bash": "shell",
    "env": "shell",
    "properties": "properties",
}


def kind_of(path: str, text: str) -> str:
    """The format of a file, by its name first and by its beginning where the name does not say it."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1].lower()
    suffix = name.rsplit(".", 1)[-1] if "." in name else ""
    if "dockerfile" in name or "containerfile" in name:
        return "dockerfile"
    if suffix == "txt" and "requirement" in name:
        return "requirements"
    return SUFFIXES.get(suffix) or _kind_of_text(text)


def _kind_of_text(text: str) -> str:
    head = text.lstrip()[:200]
    if head.startswith("#!") or re.search(r"^\s*(export \w+=|set -e)", text, re.MULTILINE):
        return "shell"
    if re.search(r"^FROM \S+", text, re.MULTILINE):
        return "dockerfile"
    if head.startswith("{"):
        return "json"
    return "properties" if PROPERTY_LINE.match(head.partition("\n")[0]) else "text"


def _scan(document: Document, text: str, offset: int) -> None:
    """What can be recognised in any text, line by line: properties, instances, images."""
    for number, line in enumerate(text.splitlines(), offset + 1):
        found = PROPERTY_LINE.match(line)
        if found and (document.kind != "python" or found.group(1).startswith("option.")):
            document.add(PROPERTY, found.group(1), found.group(2).strip(), number)
        code = (
            line
            if document.kind not in ("python", "shell", "dockerfile", "yaml", "properties")
            else _uncommented(line)
        )
        for match in INSTANCE_TYPE.finditer(code):
            document.add(INSTANCE, match.group(), match.group(), number)
        for match in IMAGE_NAME.finditer(code):
            document.add(IMAGE, match.group(), match.group(), number)


def _uncommented(line: str) -> str:
    return "" if line.lstrip().startswith("#") else re.sub(r"\s#\s.*$", "", line)


def _notebook(document: Document, text: str, offset: int) -> None:
    try:
        cells = json.loads(text)["cells"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    raw, at = text.splitlines(), 0
    kept: list[str] = []
    names: dict[str, str] = {}
    for cell in cells if isinstance(cells, list) else []:
        source = cell.get("source", "") if isinstance(cell, Mapping) else ""
        source = "".join(str(s) for s in source) if isinstance(source, list) else str(source)
        at, whole = _where_in(raw, source, at)
        kept.append(source)
        if cell.get("cell_type") != "code":
            continue
        inner = Document(document.path, "python")
        _cell(inner, source, names)
        for fact in inner.facts:
            line = at + (1 if whole else fact.line)
            document.add(fact.kind, fact.name, fact.value, min(line, len(raw)))
    document.text = "\n".join(kept)


def _where_in(raw: list[str], source: str, start: int) -> tuple[int, bool]:
    """Index of the raw line with the first line of `source`, and whether the whole cell is on it."""
    first = source.split("\n", 1)[0]
    needles = {json.dumps(first, ensure_ascii=False)[1:-1], json.dumps(first)[1:-1]}
    for number in range(start, len(raw)):
        stripped = raw[number].strip().rstrip(",")
        if any(stripped in (f'"{n}\\n"', f'"{n}"', f'"source": ["{n}\\n"') for n in needles):
            return number, False
        if stripped.startswith('"source": "') and any(n in stripped for n in needles):
            return number, True
    return start, False


def _cell(document: Document, source: str, names: dict[str, str]) -> None:
    first = source.split("\n", 1)[0]
    if first.startswith("%%writefile") or first.startswith(("%%bash", "%%sh", "%%script")):
        name = first.split()[-1] if first.startswith("%%writefile") else "cell.sh"
        inner = read(name, source.partition("\n")[2])
        for fact in inner.facts:
            document.add(fact.kind, fact.name, fact.value, fact.line + 1)
        return
    lines = source.split("\n")
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("!", "%pip", "%sh")):
            _command(document, line.lstrip().lstrip("!%").removeprefix("sh "), number, {})
            lines[number] = line[: len(line) - len(line.lstrip())] + "pass"
        elif line.lstrip().startswith("%"):
            lines[number] = ""
    _python(document, "\n".join(lines), 0, names)
    _scan(document, "\n".join(lines), 0)


# Python -------------------------------------------------------------------------------------------------------------


def _python(document: Document, text: str, offset: int, names: dict[str, str] | None = None) -> None:
    """`names`: what earlier cells of a notebook assigned; added to."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    nodes = list(ast.walk(tree))
    names = {} if names is None else names
    _constants(document, nodes, offset, names)
    for node in nodes:
        if isinstance(node, ast.Call):
            _call(document, node, names, offset)
        elif isinstance(node, ast.Dict):
            _dict(document, node, names, offset)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            _embedded(document, node.value, (node.lineno - 1) + offset)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                document.add(CALL, f"import {module}.{alias.name}".replace(" .", " "), "", node.lineno + offset)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            _environ(document, node, names, offset)


def _constants(document: Document, nodes: list[ast.AST], offset: int, names: dict[str, str]) -> None:
    """Names that are given a known value, in the order of the file; each is an argument, too."""
    for node in sorted((n for n in nodes if isinstance(n, ast.Assign)), key=lambda n: n.lineno):
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _literal(node.value, names)
            if value is not None:
                names[node.targets[0].id] = value
                document.add(ARG, node.targets[0].id, value, node.lineno + offset)


def _environ(document: Document, node: ast.Assign, names: Mapping[str, str], offset: int) -> None:
    """os.environ["X"] = "y" and hyperparameters["x"] = y."""
    target = node.targets[0]
    assert isinstance(target, ast.Subscript)
    key, value = _literal(target.slice, names), _literal(node.value, names)
    if key is not None and value is not None:
        kind = ENV if key.isupper() or "environ" in ast.unparse(target.value) else ARG
        document.add(kind, key, value, node.lineno + offset)


def _call(document: Document, node: ast.Call, names: Mapping[str, str], offset: int) -> None:
    try:
        called = ast.unparse(node.func)
    except (ValueError, RecursionError):
        return
    document.add(CALL, called, "", node.lineno + offset)
    for keyword in node.keywords:
        value = _literal(keyword.value, names)
        if keyword.arg:
            document.add(ARG, keyword.arg, UNKNOWN if value is None else value, keyword.value.lineno + offset)
        if keyword.arg and value is not None and (called.endswith(".retrieve") or called == "retrieve"):
            document.add(CALL, f"retrieve:{keyword.arg}", value, keyword.value.lineno + offset)


def _dict(document: Document, node: ast.Dict, names: Mapping[str, str], offset: int) -> None:
    for key_node, value_node in zip(node.keys, node.values, strict=True):
        key = _literal(key_node, names) if key_node is not None else None
        value = _literal(value_node, names)
        if key is None or isinstance(value_node, ast.Dict | ast.List):
            continue
        value = UNKNOWN if value is None else value
        kind = PROPERTY if key.startswith("option.") else ENV if re.fullmatch(r"[A-Z][A-Z0-9_]+", key) else ARG
        document.add(kind, key, value, value_node.lineno + offset)


def _literal(node: ast.AST | None, names: Mapping[str, str]) -> str | None:
    """A constant, a name of one, a product of two, or an f-string whose parts are known or stay as {}."""
    out: str | None = None
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool):
        out = str(node.value).lower() if isinstance(node.value, bool) else str(node.value)
    elif isinstance(node, ast.Name):
        out = names.get(node.id)
    elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in ("str", "json.dumps"):
        out = _literal(node.args[0], names)
    elif isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in node.values)
        out = "".join(_literal(part, names) or "{}" for part in parts)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _literal(node.left, names) or "", _literal(node.right, names) or ""
        if left.isdigit() and right.isdigit() and len(left) + len(right) < 12:
            out = str(int(left) * int(right))
    return out


def _embedded(document: Document, text: str, offset: int) -> None:
    """A file in a string: only what is plainly one."""
    if re.search(r"^\s*FROM \S+", text, re.MULTILINE) and "RUN" in text:
        _dockerfile(document, text, offset)
    elif text.lstrip().startswith("#!") or re.search(r"^\s*(?:export \w+=|pip3? install )", text, re.MULTILINE):
        _shell(document, text, offset)


# Shell and Dockerfile -----------------------------------------------------------------------------------------------


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(index of the first line, text) with backslash continuations joined; comments inside are dropped."""
    start, kept = 0, ""
    for number, line in enumerate(text.splitlines()):
        if not kept:
            start = number
        if kept and line.lstrip().startswith("#"):
            continue
        if line.rstrip().endswith("\\"):
            kept += line.rstrip()[:-1] + " \n"
            continue
        yield start, kept + line
        kept = ""
    if kept:
        yield start, kept


def _shell(document: Document, text: str, offset: int) -> None:
    known: dict[str, str] = {}
    for number, line in _logical_lines(text):
        if not line.lstrip().startswith("#"):
            _command(document, line, number + offset, known)


def _words(line: str) -> list[tuple[str, int]]:
    """Words of a command with the number of line breaks before each."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    lexer.whitespace = " \t\r"
    out, breaks = [], 0
    try:
        for word in lexer:
            newlines = word.count("\n")
            cleaned = word.strip("\n")
            if cleaned:
                out.append((cleaned, breaks + (len(word) - len(word.lstrip("\n")))))
            breaks += newlines
    except ValueError:  # quotes that do not close on this line
        out = [(word, 0) for word in line.split()]
    return out


def _command(document: Document, line: str, index: int, known: dict[str, str]) -> None:
    """Assignments, flags with their values, and packages of one command line."""
    words = _words(line)
    pip = any(w in ("pip", "pip3") or w.endswith(("/pip", "/pip3")) for w, _ in words) and any(
        w == "install" for w, _ in words
    )
    if pip:
        _pip(document, words, index)
    pending: tuple[str, int] | None = None
    for word, breaks in words:
        number = index + 1 + breaks
        value = _expanded(word, known)
        flag, assign = FLAG.match(word), SHELL_ASSIGN.match(word)
        if pending and not (flag and not re.fullmatch(r"-?\d.*", word)):
            document.add(ARG, pending[0], value, pending[1])
            pending = None
            continue
        if pending:
            document.add(ARG, pending[0], "", pending[1])
            pending = None
        if flag and not re.fullmatch(r"-\d+", word):
            name = flag.group(1).replace("-", "_")
            if flag.group(2) is None:
                pending = (name, number)
            else:
                document.add(ARG, name, _expanded(flag.group(2), known), number)
        elif assign:
            name, text = assign.group(1), _expanded(assign.group(2), known)
            default = re.fullmatch(r"\$\{\w+:-?([^}]*)\}", text)
            known[name] = default.group(1) if default else text
            document.add(ENV, name, known[name], number)
            if name.isupper():
                document.add(ARG, name.lower(), known[name], number)
    if pending:
        document.add(ARG, pending[0], "", pending[1])


def _expanded(word: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda m: known.get(m.group(1), m.group(0)), word)


def _pip(document: Document, words: Iterable[tuple[str, int]], index: int) -> None:
    """Packages of `pip install`; an index of Neuron's anywhere on the line belongs to all of them."""
    listed = list(words)
    neuron = "neuron-index" if any("pip.repos.neuron" in w for w, _ in listed) else ""
    installing, skip = False, False
    for word, breaks in listed:
        if word in (";", "&&", "||", "|", "&"):
            installing = False
        elif word == "install":
            installing = True
        elif skip:
            skip = False
        elif installing and word.startswith("-"):
            skip = word in (
                "-r",
                "--requirement",
                "-c",
                "--constraint",
                "-i",
                "--index-url",
                "--extra-index-url",
                "-t",
                "--target",
                "-f",
                "--find-links",
                "--prefix",
                "--cache-dir",
                "--timeout",
            )
        elif installing and re.match(r"^[A-Za-z0-9]", word) and "://" not in word:
            document.add(PACKAGE, package_name(word), f"{word} {neuron}".strip(), index + 1 + breaks)


def package_name(spec: str) -> str:
    """ "Torch_Neuronx[extra]==1.0" -> "torch-neuronx"."""
    return re.split(r"[\[<>=!~;@ ]", spec.strip(), maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


def _dockerfile(document: Document, text: str, offset: int) -> None:
    known: dict[str, str] = {}
    for number, line in _logical_lines(_without_heredocs(document, text, offset)):
        stripped = line.lstrip()
        keyword, _, rest = stripped.partition(" ")
        keyword = keyword.upper()
        if stripped.startswith("#") or not rest:
            continue
        if keyword == "ARG" and "=" in rest:
            name, _, value = rest.strip().partition("=")
            known[name] = value.strip("\"'")
        elif keyword == "FROM":
            words = [w for w in rest.split() if not w.startswith("--")]
            if words:
                document.add(IMAGE, _expanded(words[0], known), _expanded(words[0], known), number + offset + 1)
                document.add(CALL, "FROM", _expanded(words[0], known), number + offset + 1)
        elif keyword == "ENV":
            _env(document, rest, number + offset, known)
        elif keyword in ("RUN", "CMD", "ENTRYPOINT"):
            document.add(CALL, keyword, rest.strip()[:500], number + offset + 1)
            if rest.lstrip().startswith("["):
                rest = " ".join(re.findall(r"\"((?:[^\"\\]|\\.)*)\"", rest))
            _command(document, rest, number + offset, known)


def _env(document: Document, rest: str, index: int, known: dict[str, str]) -> None:
    words = _words(rest)
    if words and "=" not in words[0][0]:
        name, _, value = rest.strip().partition(" ")
        document.add(ENV, name, value.strip(), index + 1)
        return
    for word, breaks in words:
        match = SHELL_ASSIGN.match(word)
        if match:
            document.add(ENV, match.group(1), _expanded(match.group(2), known), index + 1 + breaks)


def _without_heredocs(document: Document, text: str, offset: int) -> str:
    """Heredoc bodies are files of their own: shell, or what _scan finds in them."""
    lines, out, end = text.splitlines(), [], ""
    for line in lines:
        if end:
            out.append("")
            if line.strip() == end:
                end = ""
            continue
        match = re.search(r"<<-?\s*[\"']?(\w+)[\"']?", line)
        if match and re.match(r"\s*(RUN|COPY|cat)\b", line):
            end = match.group(1)
        out.append(line.replace(match.group(0), "") if end and match else line)
    return "\n".join(out)


# requirements, YAML, JSON -------------------------------------------------------------------------------------------


def _requirements(document: Document, text: str, offset: int) -> None:
    neuron = "neuron-index" if "pip.repos.neuron" in text else ""
    for number, line in enumerate(text.splitlines(), offset + 1):
        spec = line.split("#", 1)[0].strip()
        if re.match(r"^[A-Za-z0-9]", spec) and "://" not in spec.split("@")[0]:
            document.add(PACKAGE, package_name(spec), f"{spec} {neuron}".strip(), number)


def _yaml(document: Document, text: str, offset: int) -> None:
    import yaml

    try:
        for root in yaml.compose_all(_untemplated(text), Loader=yaml.SafeLoader):
            if root is not None:
                _yaml_node(document, root, "", 0)
    except (yaml.YAMLError, RecursionError, ValueError):
        return


def _untemplated(text: str) -> str:
    """Helm and Jinja lines that are no YAML are emptied, so that the rest can be read."""
    return "\n".join(
        "" if line.lstrip().startswith("{{") or line.lstrip().startswith("{%") else line for line in text.splitlines()
    )


def _yaml_node(document: Document, node: Any, key: str, depth: int) -> None:
    import yaml

    if depth > 60:
        return
    if isinstance(node, yaml.MappingNode):
        pairs = {k.value: v for k, v in node.value if isinstance(k, yaml.ScalarNode)}
        name, value = pairs.get("name"), pairs.get("value")
        if isinstance(name, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode):
            document.add(ENV, name.value, value.value, value.start_mark.line + 1)
        for child, item in pairs.items():
            _yaml_node(document, item, str(child), depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        scalars = [n for n in node.value if isinstance(n, yaml.ScalarNode)]
        if key in ("args", "command") and len(scalars) == len(node.value):
            _yaml_args(document, scalars)
        for item in node.value:
            _yaml_node(document, item, key, depth + 1)
    elif isinstance(node, yaml.ScalarNode):
        line = node.start_mark.line + 1
        if "\n" in node.value.strip() and node.style in ("|", ">"):
            _shell(document, node.value, line)
        elif key:
            kind = PROPERTY if key.startswith("option.") else ENV if re.fullmatch(r"[A-Z][A-Z0-9_]+", key) else ARG
            document.add(kind, key, node.value, line)


def _yaml_args(document: Document, scalars: list[Any]) -> None:
    pending: tuple[str, int] | None = None
    for scalar in scalars:
        if "\n" in scalar.value:
            _shell(document, scalar.value, scalar.start_mark.line + (1 if scalar.style in ("|", ">") else 0))
            continue
        for word in scalar.value.split() if scalar.value.startswith("-") else [scalar.value]:
            flag = FLAG.match(word)
            line = scalar.start_mark.line + 1
            if flag:
                if pending:
                    document.add(ARG, pending[0], "", pending[1])
                pending = (flag.group(1).replace("-", "_"), line)
                if flag.group(2) is not None:
                    document.add(ARG, pending[0], flag.group(2), line)
                    pending = None
            elif pending:
                document.add(ARG, pending[0], word, pending[1])
                pending = None
    if pending:
        document.add(ARG, pending[0], "", pending[1])


def _json(document: Document, text: str, offset: int) -> None:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return
    at: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), offset + 1):
        for key in re.findall(r"\"((?:[^\"\\]|\\.)*)\"\s*:", line):
            at.setdefault(key, number)
    stack: list[Any] = [raw]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            for key, value in node.items():
                if isinstance(value, dict | list):
                    stack.append(value)
                elif value is not None:
                    text_value = str(value).lower() if isinstance(value, bool) else str(value).strip('"')
                    kind = (
                        PROPERTY
                        if key.startswith("option.")
                        else ENV
                        if re.fullmatch(r"[A-Z][A-Z0-9_]+", key)
                        else ARG
                    )
                    document.add(kind, key, text_value, at.get(key, 1))
