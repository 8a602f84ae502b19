"""The rows of a data channel: which files it has, what a row may be. The trainer reads, the harness checks by it.

Five formats of rows, recognised by their columns (FORMATS below). Files: JSON (one object a line, an array, or
objects written over several lines), CSV, TSV, text and Parquet; compressed with gzip, zstd, bzip2 or xz where the
name says so. UTF-8, with or without a byte order mark. What is anything else is named once for the file, not once a
line.

Standard library and Python 3.10 syntax only; pyarrow, for Parquet and zstd, is imported where such a file is read.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

# Format -> (columns it needs, columns it takes besides). The first that fits a row is taken: sets of chats often have
# a `prompt` or a `text` beside their messages.
FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("tools",)),  # platform.openai.com/docs/guides/supervised-fine-tuning
    "sharegpt": (("conversations",), ("system", "tools")),
    "prompt_completion": (("prompt", "completion"), ()),
    "alpaca": (("instruction", "output"), ("input", "system", "history")),  # github.com/tatsu-lab/stanford_alpaca
    "text": (("text",), ()),
}
COLUMNS = tuple(dict.fromkeys(name for pair in FORMATS.values() for group in pair for name in group))
# What ShareGPT's `from` and the usual `role` say -> role of the chat templates.
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "ai", "bot", "bing", "bard", "function_call"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
}
SUFFIXES = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "json"),
    **dict.fromkeys((".csv",), "csv"),
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".txt", ".text", ".md"), "text"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
# Beside data in a directory: no rows, and no mistake.
BESIDE = ("readme", "license", "licence", "_success", "dataset_infos.json", "dataset_info.json", "state.json")
MAX_ROW = 64 << 20  # bytes; a row longer than that is a file in a wrong form
_HEAD = 1 << 16


class RowsError(ValueError):
    """A file or a directory is no data channel; `hint` says what to do."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True)
class Row:
    """One row: its columns by the names in FORMATS, checked.

    `more`: the next row is the same document (lines of a text file).
    """

    file: Path
    where: str  # "line 3", "row 3"
    format: str
    values: dict[str, Any]
    more: bool = False


@dataclass(frozen=True)
class Bad:
    """What is wrong with a row, or, where `where` is empty, with its file."""

    file: Path
    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.file.name}{' ' if self.where else ''}{self.where}: {self.what}"


@dataclass
class Reading:
    """How rows are to be understood, and what the first one settled: a channel has one format.

    `columns`: name in FORMATS -> name in the files. `format`: one of FORMATS, or None to go by the first row.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    unused: tuple[str, ...] = ()  # columns of the first row that are not read

    def __post_init__(self) -> None:
        if problem := format_problem(self.format, self.columns):
            raise RowsError(problem)


def format_problem(format_: str | None, columns: Mapping[str, str]) -> str:
    """What is wrong with a choice of format and columns; empty where nothing is."""
    if format_ is not None and format_ not in FORMATS:
        return f"format {format_!r} is not known; known: {', '.join(FORMATS)}"
    known = COLUMNS if format_ is None else [n for group in FORMATS[format_] for n in group]
    unknown = [name for name in columns if name not in known]
    if unknown:
        return (
            f"columns: {', '.join(unknown)} is not a column of {format_ or 'any format'}; known: {', '.join(known)}"
        )
    return ""


# -- files -----------------------------------------------------------------------------------------------------------


def files(sources: Path | Sequence[Path]) -> list[Path]:
    """The data files of `sources`, each a file or a directory, in order of their names; links are followed.

    In directories hidden files and what lies BESIDE data is left out. Raises RowsError where one is not there, or
    where a directory holds no data, something that is no data, or several parts of a data set (train and test).
    """
    found: list[Path] = []
    for source in [sources] if isinstance(sources, Path) else sources:
        if source.is_dir():
            inside = sorted(p for p in walk(source) if not _beside(p.relative_to(source)))
            if not inside:
                raise RowsError(f"{source}: no data files in this directory", f"known: {', '.join(SUFFIXES)}")
            strange = [p.name for p in inside if _suffixes(p)[0] is None and p.suffix not in ("", *COMPRESSED)]
            if strange:
                shown = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
                raise RowsError(f"{source}: {shown}: not a data file", f"known: {', '.join(SUFFIXES)}")
            if parts := _parts(source, inside):
                raise RowsError(f"{source}: holds {parts}", "name the files of each channel, or a directory for each")
            found += inside
        elif source.is_file():
            found.append(source)
        elif source.is_symlink():
            raise RowsError(f"{source}: a link to {source.readlink()}, which is not there")
        else:
            raise RowsError(f"{source}: no such file")
    return list(dict.fromkeys(found))


def walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, through links to directories as well; a link that leads back is not followed."""
    seen: set[str] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (path for name in names if (path := Path(base, name)).is_file())


_TRAIN, _HELD_OUT = ("train",), ("test", "validation", "valid", "val", "dev", "eval")


def _parts(source: Path, inside: Sequence[Path]) -> str:
    """`train.jsonl and test.jsonl` where both are there: training on the test rows would go unseen."""
    named: dict[bool, str] = {}
    for path in inside:
        for part in path.relative_to(source).parts:
            word = part.lower().replace(".", "-").replace("_", "-").split("-")[0]
            if word in (*_TRAIN, *_HELD_OUT):
                named.setdefault(word in _TRAIN, part)
    return f"{named[True]} and {named[False]}" if len(named) == 2 else ""


def _beside(path: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return hidden or path.name.lower().startswith(BESIDE) or path.suffix == ".jinja"


def _suffixes(path: Path) -> tuple[str | None, str | None]:
    """(kind by the name, compression by the name)."""
    packed = COMPRESSED.get(path.suffix.lower())
    inner = Path(path.stem).suffix if packed else path.suffix
    return SUFFIXES.get(inner.lower()), packed


def is_compressed(path: Path) -> bool:
    """Whether the name of a file says so; what it says otherwise is an error of `read`."""
    return _suffixes(path)[1] is not None


# First bytes -> what it is. https://en.wikipedia.org/wiki/List_of_file_signatures
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_OTHERS = {
    b"PK\x03\x04": ("a zip archive (or an Excel file)", "unpack it, or save the table as .csv"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"%PDF": ("a PDF document", "extract its text"),
    b"SQLite format 3": ("an SQLite database", "export the table as .csv"),
    b"ARROW1": ("an Arrow file", "write it as Parquet: Dataset.to_parquet"),
    b"\x89HDF": ("an HDF5 file", "write it as Parquet or JSON lines"),
    b"\x80\x04": ("a Python pickle", "write it as JSON lines"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "git lfs pull"),
    b"<!DOCTYPE": ("an HTML page", "a download may have failed: get the file again"),
    b"<!doctype": ("an HTML page", "a download may have failed: get the file again"),
    b"<html": ("an HTML page", "a download may have failed: get the file again"),
    b"<?xml": ("an XML file", "write it as JSON lines"),
}
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def _magic(head: bytes, table: Mapping[bytes, Any]) -> Any:
    return next((value for start, value in table.items() if head.startswith(start)), None)


def kind_of(path: Path) -> tuple[str, str | None]:
    """(json, csv, tsv, text or parquet; compression or None), by name and first bytes.

    Raises RowsError naming what the file is instead, or where name and content disagree.
    """
    kind, packed = _suffixes(path)
    with path.open("rb") as handle:
        head = handle.read(_HEAD)
    really = _magic(head, _PACKED)
    if really != packed:
        if really is None and head:
            raise RowsError(
                f"{path.name}: named {path.suffix}, but not a {packed} archive", "rename or download it again"
            )
        if really is not None:
            suffix = next(s for s, name in COMPRESSED.items() if name == really)
            raise RowsError(f"{path.name}: this is a {really} archive", f"name it {path.name}{suffix}, or unpack it")
    if packed and head:
        try:
            with opened(path) as handle:
                head = handle.read(_HEAD)
        except (*_BROKEN, RowsError) as error:
            raise RowsError(f"{path.name}: damaged {packed} archive ({error})", "download or make it again") from None
    _text_or_parquet(path, head, kind)
    if kind is None and head.startswith(b"PAR1"):
        kind = "parquet"
    if kind is None and head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        kind = "json"
    if kind is None:
        raise RowsError(f"{path.name}: not a known kind of data file", f"name it by one of {', '.join(SUFFIXES)}")
    return kind, packed


def _text_or_parquet(path: Path, head: bytes, kind: str | None) -> None:
    """Raises RowsError for what is neither, or is not what the name says."""
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise RowsError(f"{path.name}: no rows, the file is empty")
    if (other := _magic(head, _OTHERS)) or head[257:262] == b"ustar":
        what, hint = other or ("a tar archive", "unpack it into a directory, and name that")
        raise RowsError(f"{path.name}: this is {what}", hint)
    if head.startswith(b"PAR1") != (kind == "parquet") and (kind is not None):
        if kind == "parquet":
            raise RowsError(
                f"{path.name}: named {path.suffix}, but not a Parquet file", "rename or download it again"
            )
        raise RowsError(f"{path.name}: this is a Parquet file", f"name it {path.stem}.parquet")
    if head.startswith(b"PAR1"):
        return
    wide = _magic(head, _WIDE)
    if wide is None and b"\0" in head[:4096]:
        # ASCII letters in UTF-16 have a zero byte beside each; no BOM is needed to see that.
        odd, even = head[1:4096:2].count(0), head[0:4096:2].count(0)
        wide = "UTF-16" if max(odd, even) * 4 > min(len(head), 4096) else "binary"
    if wide == "binary":
        raise RowsError(f"{path.name}: binary data, not text", f"known: {', '.join(SUFFIXES)}")
    if wide:
        hint = f"iconv -f {wide} -t UTF-8 {path.name} > utf8-{path.name}"
        raise RowsError(f"{path.name}: this is {wide} text; UTF-8 is read", hint)


_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name says that it is compressed."""
    packed = _suffixes(path)[1]
    if packed == "gzip":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if packed == "bzip2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if packed == "xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if packed == "zstd":
        return cast(BinaryIO, io.BufferedReader(_pyarrow(path).input_stream(str(path), compression="zstd")))
    return path.open("rb")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RowsError(
            f"{path.name}: pyarrow is needed to read this file ({error})", "pip install pyarrow"
        ) from None
    return pyarrow


# -- rows ------------------------------------------------------------------------------------------------------------


def read(sources: Path | Sequence[Path], reading: Reading | None = None) -> Iterator[Row | Bad]:
    """The rows of all files of a channel, one after the other, and what is wrong with them.

    A file that cannot be read at all is one Bad with an empty `where`. Raises RowsError as `files` does.
    """
    reading = reading or Reading()
    for path in files(sources):
        try:
            kind, _ = kind_of(path)
            yield from _READERS[kind](path, reading)
        except RowsError as error:
            yield Bad(path, "", str(error).removeprefix(f"{path.name}: "), error.hint)
        except UnicodeDecodeError:
            yield _not_utf8(path)
        except _BROKEN as error:
            yield Bad(path, "", f"cannot be read to its end ({error or 'it ends too early'})", "make it again")


def check(values: Mapping[str, Any], reading: Reading) -> dict[str, Any] | str:
    """A row by its columns' names in FORMATS, or what is wrong with it. The first row settles `reading.format`."""
    for name, actual in reading.columns.items():
        if actual not in values:
            return f"column {actual} ({name}) is missing; the row has {_named(values)}"
    named = {name: values[actual] for name, actual in reading.columns.items()}
    taken = set(reading.columns.values())
    named |= {k: v for k, v in values.items() if k in COLUMNS and k not in taken and k not in named}
    found = _format_of(named, values, reading)
    if isinstance(found, str) and found not in FORMATS:
        return found
    if reading.format is None:
        reading.format = found
        needed = {reading.columns.get(n, n) for group in FORMATS[found] for n in group}
        reading.unused = tuple(str(k) for k in values if k not in needed)
    elif found != reading.format:
        return f"has {_columns_of(found)}, the rows before it have {_columns_of(reading.format)}"
    made: dict[str, Any] | str = _CHECKS[found](named)
    return made


def _format_of(named: Mapping[str, Any], values: Mapping[str, Any], reading: Reading) -> str:
    """The format of a row, or why it has none."""
    if reading.format is not None and all(n in named for n in FORMATS[reading.format][0]):
        return reading.format
    for name, (needed, more) in FORMATS.items():
        if set(reading.columns) <= {*needed, *more} and all(column in named for column in needed):
            return name
    for begun, missing in (("prompt", "completion"), ("instruction", "output")):
        if begun in named:
            return f"{missing} is missing"
    if set(values) >= {"role", "content"} or set(values) >= {"from", "value"}:
        return 'a message by itself: a row holds a whole chat, {"messages": [...]}'
    nested = [k for k, v in values.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if nested:
        return f"{nested[0]} holds a list: if these are the rows, make it the file; if it is a chat, name it messages"
    told = "needs prompt and completion, or text; or messages, conversations, instruction and output"
    return f"{told}; the row has {_named(values)}"


def _columns_of(format_: str) -> str:
    return " and ".join(FORMATS[format_][0])


def _named(values: Mapping[str, Any]) -> str:
    names = [str(k) for k in values]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no columns"


def _text(name: str, value: object) -> str:
    """What is wrong with a value that is to be text; empty where it is."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            return f"{name} has half of a surrogate pair (\\ud800 to \\udfff), which is not a character"
        return ""
    if value is None:
        return f"{name} is null; it must be text"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{name} must be text, not a list of messages; name the column: messages"
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return f"{name} must be text, not {names.get(type(value), type(value).__name__)}"


def _only_text(names: Iterable[str], named: Mapping[str, Any]) -> dict[str, Any] | str:
    for name in names:
        if problem := _text(name, named[name]):
            return problem
    return {name: named[name] for name in names}


def _check_prompt(named: Mapping[str, Any]) -> dict[str, Any] | str:
    """Two texts, or two lists of messages (huggingface.co/docs/trl/dataset_formats, conversational)."""
    if isinstance(named["prompt"], list) and isinstance(named["completion"], list):
        chat = _chat("completion", [*named["prompt"], *named["completion"]])
        return chat if isinstance(chat, str) else {"messages": chat, "answers_from": len(named["prompt"])}
    return _only_text(("prompt", "completion"), named)


def _check_alpaca(named: Mapping[str, Any]) -> dict[str, Any] | str:
    texts = {k: named[k] for k in ("instruction", "output")}
    # Both are often absent, null or empty where there is nothing to say.
    texts |= {k: v for k in ("input", "system") if (v := named.get(k)) not in (None, "")}
    checked = _only_text(texts, texts)
    history = named.get("history")
    if isinstance(checked, str) or not history:
        return checked
    pairs = _parsed(history)
    if not isinstance(pairs, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs
    ):
        return "history must be a list of pairs of texts, question and answer"
    return {**checked, "history": pairs}


def _parsed(value: object) -> object:
    """CSV and some Parquet files hold lists as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _check_chat(column: str) -> Any:
    def checked(named: Mapping[str, Any]) -> dict[str, Any] | str:
        chat = _chat(column, _parsed(named[column]))
        if isinstance(chat, str):
            return chat
        system = named.get("system")
        if system not in (None, ""):
            if problem := _text("system", system):
                return problem
            chat = [{"role": "system", "content": system}, *chat]
        tools = _parsed(named.get("tools"))
        if tools in (None, "", []):
            return {"messages": chat}
        if not isinstance(tools, list):
            return "tools must be a list of JSON schemas"
        return {"messages": chat, "tools": tools}

    return checked


def _chat(column: str, value: object) -> list[dict[str, Any]] | str:
    """Messages with the templates' roles and text contents, or what is wrong with them."""
    if not isinstance(value, list):
        return f"{column} must be a list of messages, not {'null' if value is None else type(value).__name__}"
    if not value:
        return f"{column} is empty"
    out = []
    for number, message in enumerate(value, start=1):
        made = _message(message)
        if isinstance(made, str):
            return f"{column}, message {number}: {made}"
        out.append(made)
    if not any(m["role"] == "assistant" for m in out):
        return f"{column} has no message of the assistant: there is nothing to learn"
    return out


def _message(message: object) -> dict[str, Any] | str:
    if not isinstance(message, dict):
        return f"an object with role and content expected, not {type(message).__name__}"
    said = message.get("role", message.get("from"))
    if not isinstance(said, str) or said not in ROLES:
        return f"role {said!r} is not known; known: {', '.join(ROLES)}"
    content = message.get("content", message.get("value"))
    calls = message.get("tool_calls")
    if content is None and calls and ROLES[said] == "assistant":
        content = ""
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") == "text" else None for p in content]
        if not all(isinstance(p, str) for p in parts):
            kinds = sorted({str(p.get("type")) if isinstance(p, dict) else type(p).__name__ for p in content})
            return f"content has parts that are not text ({', '.join(kinds)}); only text is trained on"
        content = "".join(cast("list[str]", parts))
    if problem := _text("content", content):
        return problem
    kept = {
        k: v for k, v in message.items() if k in ("name", "tool_calls", "tool_call_id", "weight") and v is not None
    }
    if kept.get("weight", 1) not in (0, 1):
        return f"weight must be 0 or 1, not {kept['weight']!r}"
    return {"role": ROLES[said], "content": content, **kept}


_CHECKS: dict[str, Any] = {
    "messages": _check_chat("messages"),
    "sharegpt": _check_chat("conversations"),
    "prompt_completion": _check_prompt,
    "alpaca": _check_alpaca,
    "text": lambda named: _only_text(("text",), named),
}


def _checked(path: Path, where: str, value: object, reading: Reading) -> Row | Bad:
    if isinstance(value, _Duplicate):
        return Bad(path, where, f"{value.key} is there twice")
    if not isinstance(value, dict):
        return Bad(path, where, f"a JSON object expected, not {type(value).__name__}")
    values = check(value, reading)
    if isinstance(values, str):
        return Bad(path, where, values)
    return Row(path, where, reading.format or "", values)


# -- JSON ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Duplicate:
    """Stands for an object that has a key twice: which of the two was meant is not ours to guess."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> Any:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    keys = [k for k, _ in pairs]
    return _Duplicate(next(k for k in keys if keys.count(k) > 1))


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json(path: Path, reading: Reading) -> Iterator[Row | Bad]:
    """JSON in one of its three forms, told apart by the first two lines and the first value."""
    with opened(path) as handle:
        first, second = (_nonblank(handle) for _ in range(2))
    if first.lstrip(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _values(path, reading, array=True)
    elif _is_object(first):
        yield from _lines(path, reading)
    else:
        whole = next(iter(_values(path, reading, array=False)), None)
        if isinstance(whole, Row) or (isinstance(whole, Bad) and not whole.what.startswith("not JSON")):
            yield from _values(path, reading, array=False)
        elif _is_object(second):
            yield from _lines(path, reading)
        elif first.decode("utf-8", "replace").lstrip("\ufeff \t").startswith("{"):
            assert isinstance(whole, Bad)
            yield whole
        else:
            shown = first.decode("utf-8", "replace").strip()[:40]
            first.decode("utf-8")  # raises: the encoding is what is wrong
            hint = "one JSON object per line; a table is named .csv or .tsv, plain text .txt"
            yield Bad(path, "", f"not JSON (it begins with {shown!r})", hint)


def _nonblank(handle: BinaryIO) -> bytes:
    """The next line that is not blank; empty at the end."""
    while line := handle.readline(MAX_ROW):
        if line.strip(b"\xef\xbb\xbf \t\r\n"):
            return line
    return b""


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(_DECODER.decode(line.decode("utf-8-sig")), (dict, _Duplicate))
    except (ValueError, RecursionError):
        return False


def _lines(path: Path, reading: Reading) -> Iterator[Row | Bad]:
    with opened(path) as handle:
        number = 0
        while raw := handle.readline(MAX_ROW + 1):
            number += 1
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if len(raw) > MAX_ROW:
                yield Bad(path, f"line {number}", f"longer than {MAX_ROW >> 20} MiB", "one JSON object per line")
                return
            if not raw.strip():
                continue
            value = _line(raw)
            where = f"line {number}"
            yield Bad(path, where, value) if isinstance(value, str) else _checked(path, where, value[0], reading)


def _line(raw: bytes) -> tuple[Any] | str:
    """(the value of a line,), or what is wrong with it."""
    try:
        return (_DECODER.decode(raw.decode("utf-8")),)
    except UnicodeDecodeError as error:
        return _utf8_reason(error.object[error.start], error.start)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    except ValueError as error:  # a number of too many digits
        return f"not JSON ({error})"
    except RecursionError:
        return "not JSON (nested too deep)"


def _values(path: Path, reading: Reading, array: bool) -> Iterator[Row | Bad]:
    """The elements of one array, or objects one after the other, read piece by piece."""
    with opened(path) as handle:
        stream = _Stream(handle)
        if array:
            stream.skip("[")
        count = 0
        while True:
            stream.skip("," if count else "")
            if stream.at("]") and array:
                stream.skip("]")
                if not stream.ended():
                    yield Bad(path, f"line {stream.line}", "more text after the end of the array")
                break
            if stream.ended():
                if array:
                    yield Bad(path, "", "not JSON (the array does not end: the file is cut off)", "make it again")
                break
            where = f"line {stream.line}"
            value = stream.value()
            if isinstance(value, str):
                yield Bad(path, where, value)
                return
            count += 1
            yield _checked(path, where, value[0], reading)
    if not count:
        yield Bad(path, "", "no rows")


class _Stream:
    """JSON values out of a stream of bytes, with the number of the line at which the next one begins."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._decode = handle, codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._end, self.line = "", 0, False, 1

    def _more(self, size: int) -> None:
        raw = self._handle.read(size)
        self._end = not raw
        self._text, self._at = self._text[self._at :] + self._decode(raw, self._end), 0

    def _space(self) -> None:
        while True:
            rest = self._text[self._at : self._at + 4096]
            blank = len(rest) - len(rest.lstrip(" \t\r\n"))
            self.line += rest.count("\n", 0, blank)
            self._at += blank
            if self._at < len(self._text):
                if blank < len(rest):
                    return
            elif self._end:
                return
            else:
                self._more(_HEAD)

    def at(self, character: str) -> bool:
        self._space()
        return self._text.startswith(character, self._at)

    def skip(self, character: str) -> None:
        """Over blanks, `character` where it comes next, and blanks."""
        if character and self.at(character):
            self._at += 1
        self._space()

    def ended(self) -> bool:
        self._space()
        return self._at >= len(self._text)

    def value(self) -> tuple[Any] | str:
        """(the next value,), or what is wrong with it."""
        size = 1 << 20
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # A value that is cut off looks like this; anything wrong further from the end is really wrong.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if cut and not self._end and len(self._text) - self._at < MAX_ROW:
                    self._more(size)
                    size *= 2
                    continue
                line = self.line + self._text.count("\n", self._at, error.pos)
                column = error.pos - max(self._text.rfind("\n", 0, error.pos), self._at - 1)
                return f"not JSON ({error.msg} at line {line} column {column})"
            except RecursionError:
                return "not JSON (nested too deep)"
            except ValueError as error:
                return f"not JSON ({error})"
            if end == len(self._text) and not self._end:  # a number may go on
                self._more(_HEAD)
                continue
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            return (value,)


# -- tables and text -------------------------------------------------------------------------------------------------


def _csv(path: Path, reading: Reading) -> Iterator[Row | Bad]:
    """The first line names the columns. `.csv` may be separated by semicolons or tabs, as spreadsheets write it."""
    csv.field_size_limit(MAX_ROW)
    with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        start = text.readline(MAX_ROW)
        separator = "\t" if _suffixes(path)[0] == "tsv" else max(",;\t", key=lambda c: (start.count(c), c == ","))
        names = next(csv.reader([start], delimiter=separator), [])
        if len(set(names)) < len(names):
            yield Bad(path, "line 1", f"two columns have one name ({', '.join(names)})")
            return
        wanted = set(reading.columns.values()) or set(COLUMNS)
        if not wanted & set(names):
            hint = f"the first line names the columns: {', '.join(sorted(wanted))}"
            yield Bad(path, "line 1", f"no column that is known ({_named(dict.fromkeys(names))})", hint)
            return
        reader, before, count = csv.reader(text, delimiter=separator, strict=True), 1, 0
        try:
            for cells in reader:
                where, before = f"line {before + 1}", reader.line_num + 1
                if not cells:
                    continue
                count += 1
                if len(cells) == len(names):
                    yield _checked(path, where, dict(zip(names, cells)), reading)  # noqa: B905 (3.10, same length)
                else:
                    hint = 'a cell with a separator or a line break in it stands in quotes: "a, b"'
                    yield Bad(path, where, f"{len(cells)} cells, the first line has {len(names)}", hint)
        except csv.Error as error:
            yield Bad(path, f"line {before + 1}", f"not CSV ({error})", "is a quotation mark left open?")
            return
        if not count:
            yield Bad(path, "", "no rows, only the names of the columns")


def _text_lines(path: Path, reading: Reading) -> Iterator[Row | Bad]:
    """A text file is one document; each line, with its end, is a row."""
    if reading.format not in (None, "text") or reading.columns:
        yield Bad(path, "", "a text file has no columns", "format text, and no [data] columns")
        return
    reading.format = "text"
    with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=None) as text:
        before, number = "", 0
        for number, line in enumerate(text, start=1):
            if before:
                yield Row(path, f"line {number - 1}", "text", {"text": before}, more=True)
            before = line
        yield Row(path, f"line {number}", "text", {"text": before})


def _parquet(path: Path, reading: Reading) -> Iterator[Row | Bad]:
    arrow = _pyarrow(path)
    try:
        file = arrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = [n for n in names if n in COLUMNS or n in reading.columns.values()]
        number = 0
        for batch in file.iter_batches(batch_size=500, columns=wanted or names):
            for values in batch.to_pylist():
                number += 1
                yield _checked(path, f"row {number}", _without_nulls(values), reading)
    except (arrow.ArrowException, OSError) as error:
        yield Bad(path, "", f"damaged Parquet file ({str(error).splitlines()[0]})", "download or make it again")
        return
    reading.unused = reading.unused or tuple(n for n in names if n not in wanted)
    if not number:
        yield Bad(path, "", "no rows")


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Inside of lists: there every object has the keys of all, those it does not have as nulls."""
    return {
        k: [{a: b for a, b in m.items() if b is not None} if isinstance(m, dict) else m for m in v]
        if isinstance(v, list)
        else v
        for k, v in values.items()
    }


_READERS = {"json": _json, "csv": _csv, "tsv": _csv, "text": _text_lines, "parquet": _parquet}


def _not_utf8(path: Path) -> Bad:
    """The first line of a file that is not UTF-8. One is enough: the others will be like it."""
    with opened(path) as handle:
        for number, raw in enumerate(handle, start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                hint = f"if it is Windows-1252: iconv -f CP1252 -t UTF-8 {path.name} > utf8-{path.name}"
                return Bad(path, f"line {number}", _utf8_reason(raw[error.start], error.start), hint)
    return Bad(path, "", "not UTF-8 text")


def _utf8_reason(byte: int, at: int) -> str:
    return f"not UTF-8 text (0x{byte:02x} at byte {at})"
