"""containers/rows.py: every form a data file comes in is read as the same rows, or named in one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from containers import rows
from containers.rows import Bad, Reading, Row

ROWS = [
    {"prompt": "Is it warm?", "completion": ' Yes, "very"'},
    {"prompt": "Zeile\nzwei; ärger, 日本", "completion": ""},
    {"prompt": "😀\ttab", "completion": "no"},
]


def read(*paths: Path, **how: Any) -> list[dict[str, Any]]:
    found = list(rows.read(list(paths), Reading(**how)))
    assert all(isinstance(row, Row) for row in found), [str(row) for row in found]
    return [row.values for row in found if isinstance(row, Row)]


def wrong(*paths: Path, **how: Any) -> list[str]:
    return [str(row) for row in rows.read(list(paths), Reading(**how)) if isinstance(row, Bad)]


def lines(values: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(v) for v in values)


def table(values: list[dict[str, Any]], separator: str) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    names = list(values[0])
    return "\r\n".join([separator.join(names), *(separator.join(cell(v[n]) for n in names) for v in values)])


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": lambda v: lines(v).encode(),
    "ndjson.ndjson": lambda v: lines(v).encode(),
    "ends.jsonl": lambda v: (lines(v) + "\n").encode(),
    "blank.jsonl": lambda v: ("\n\n" + lines(v).replace("\n", "\n \n\n") + "\n\n\n").encode(),
    "crlf.jsonl": lambda v: lines(v).replace("\n", "\r\n").encode(),
    "cr.jsonl": lambda v: lines(v).replace("\n", "\r").encode(),
    "bom.jsonl": lambda v: lines(v).encode("utf-8-sig"),
    "blank-bom.jsonl": lambda v: ("\n" + lines(v)).encode("utf-8-sig"),
    "plain.jsonl": lambda v: "\n".join(json.dumps(x, ensure_ascii=False) for x in v).encode(),
    "array.json": lambda v: json.dumps(v).encode(),
    "array.jsonl": lambda v: json.dumps(v).encode(),
    "pretty.json": lambda v: json.dumps(v, indent=2).encode("utf-8-sig"),
    "objects.json": lambda v: "\n".join(json.dumps(x, indent=2) for x in v).encode(),
    "objects.jsonl": lambda v: "".join(json.dumps(x) for x in v).encode(),
    "lines.json": lambda v: lines(v).encode(),
    "table.csv": lambda v: table(v, ",").encode(),
    "bom.csv": lambda v: table(v, ",").encode("utf-8-sig"),
    "excel.csv": lambda v: table(v, ";").encode("utf-8-sig"),
    "table.tsv": lambda v: table(v, "\t").encode(),
    "rows.jsonl.gz": lambda v: gzip.compress(lines(v).encode()),
    "rows.json.gz": lambda v: gzip.compress(json.dumps(v, indent=1).encode("utf-8-sig")),
    "table.csv.gz": lambda v: gzip.compress(table(v, ",").encode()),
    "rows.jsonl.bz2": lambda v: bz2.compress(lines(v).encode()),
    "rows.jsonl.xz": lambda v: lzma.compress(lines(v).encode()),
    "rows.jsonl.zst": lambda v: pa.Codec("zstd").compress(lines(v).encode(), asbytes=True),
    "ROWS.JSONL": lambda v: lines(v).encode(),
    "no-suffix": lambda v: lines(v).encode(),
    "two-gzips.jsonl.gz": lambda v: (
        gzip.compress(lines(v[:1]).encode() + b"\n") + gzip.compress(lines(v[1:]).encode())
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_rows_in_every_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name](ROWS))
    assert read(path) == ROWS


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == ROWS
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "x"}]}]
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "chats.parquet")
    assert read(tmp_path / "chats.parquet") == chats
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    assert "cut.parquet: damaged Parquet file" in wrong(tmp_path / "cut.parquet")[0]
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "nulls.parquet")
    assert wrong(tmp_path / "nulls.parquet") == ["nulls.parquet row 2: text is null; it must be text"]
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert wrong(tmp_path / "none.parquet") == ["none.parquet: no rows"]
    pq.write_table(pa.table({"label": [1]}), tmp_path / "label.parquet")
    assert "the row has label" in wrong(tmp_path / "label.parquet")[0]


def test_a_text_file_is_one_document_and_its_lines_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffone\r\n\r\n  two\nthree".encode())
    found = [row for row in rows.read(path) if isinstance(row, Row)]
    assert "".join(row.values["text"] for row in found) == "one\n\n  two\nthree"
    assert [(row.where, row.more) for row in found] == [
        ("line 1", True),
        ("line 2", True),
        ("line 3", True),
        ("line 4", False),
    ]
    assert wrong(path, columns={"prompt": "a", "completion": "b"}) == ["book.txt: a text file has no columns"]


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("row", "format_", "values"),
    [
        ({"text": "a", "label": 1, "id": None}, "text", {"text": "a"}),
        ({"prompt": "a", "completion": "b", "text": "c"}, "prompt_completion", {"prompt": "a", "completion": "b"}),
        ({"prompt": "a", "messages": MESSAGES}, "messages", {"messages": MESSAGES}),
        (
            {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
            "prompt_completion",
            {"messages": MESSAGES, "answers_from": 1},
        ),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca", {"instruction": "a", "output": "b"}),
        ({"instruction": "a", "output": "b"}, "alpaca", {"instruction": "a", "output": "b"}),
        (
            {"instruction": "a", "input": None, "output": "b", "text": "x"},
            "alpaca",
            {"instruction": "a", "output": "b"},
        ),
        (
            {"instruction": "a", "input": "c", "output": "b", "system": "s", "history": [["q", "r"]]},
            "alpaca",
            {"instruction": "a", "output": "b", "input": "c", "system": "s", "history": [["q", "r"]]},
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "sharegpt",
            {"messages": MESSAGES},
        ),
        (
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}], "system": "s"},
            "sharegpt",
            {"messages": [{"role": "system", "content": "s"}, *MESSAGES]},
        ),
        ({"conversations": MESSAGES}, "sharegpt", {"messages": MESSAGES}),
        (
            {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "messages",
            {"messages": MESSAGES},
        ),
        ({"messages": json.dumps(MESSAGES)}, "messages", {"messages": MESSAGES}),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, MESSAGES[1]]},
            "messages",
            {"messages": MESSAGES},
        ),
        (
            {"messages": [{"role": "developer", "content": "d"}, *MESSAGES]},
            "messages",
            {"messages": [{"role": "system", "content": "d"}, *MESSAGES]},
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "messages": [
                    MESSAGES[0],
                    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
                    {"role": "tool", "content": "1", "tool_call_id": "x", "extra": 1},
                    {"role": "assistant", "content": "b", "weight": 0},
                ],
            },
            "messages",
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "messages": [
                    MESSAGES[0],
                    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
                    {"role": "tool", "content": "1", "tool_call_id": "x"},
                    {"role": "assistant", "content": "b", "weight": 0},
                ],
            },
        ),
    ],
)
def test_formats(row: dict[str, Any], format_: str, values: dict[str, Any]) -> None:
    reading = Reading()
    assert rows.check(row, reading) == values
    assert reading.format == format_


def test_columns_by_other_names() -> None:
    reading = Reading({"prompt": "question", "completion": "prompt"})
    assert rows.check({"question": "a", "prompt": "b", "text": "c"}, reading) == {"prompt": "a", "completion": "b"}
    assert reading.unused == ("text",)
    assert rows.check({"question": "a"}, reading) == "column prompt (completion) is missing; the row has question"
    assert rows.check({"body": "a", "prompt": "x", "completion": "y"}, Reading({"text": "body"})) == {"text": "a"}
    both = {"text": "t", "prompt": "a", "completion": "b"}
    assert rows.check(both, Reading(format="text")) == {"text": "t"}
    with pytest.raises(rows.RowsError, match="columns: promt is not a column"):
        Reading({"promt": "a"})
    with pytest.raises(rows.RowsError, match="format 'json' is not known; known: messages"):
        Reading(format="json")


USER, SAYS = '{"messages": [{"role": "user", "content": "a"}, ', '"assistant", "content": '


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "a.jsonl: no rows, the file is empty"),
        ("a.jsonl", b"\xef\xbb\xbf\n \n", "a.jsonl: no rows, the file is empty"),
        ("a.json", b"[]", "a.json: no rows"),
        ("a.csv", b"text\n", "a.csv: no rows, only the names of the columns"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}', "a.jsonl line 2: text must be text, not a number"),
        ("a.jsonl", b'{"text": true}', "line 1: text must be text, not true or false"),
        ("a.jsonl", b'{"text": null}', "line 1: text is null; it must be text"),
        ("a.jsonl", b'{"text": [{"role": "user"}]}', "text must be text, not a list of messages; name the column"),
        ("a.jsonl", b'{"prompt": "a"}', "line 1: completion is missing"),
        ("a.jsonl", b'{"instruction": "a"}', "line 1: output is missing"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "line 1: text is there twice"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a"', "line 2: not JSON (Expecting ',' delimiter at column 13)"),
        ("a.jsonl", b'{"text": "a"}\n"b"', "line 2: a JSON object expected, not str"),
        ("a.jsonl", b'{"text": "a"}\n{"prompt": "a", "completion": "b"}',
         "line 2: has prompt and completion, the rows before it have text"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1: text has half of a surrogate pair"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "line 1: not UTF-8 text (0xe9 at byte 13)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', "line 2: not UTF-8 text (0xe9 at byte 13)"),
        ("a.json", b'[{"text": "a"},\n {"text": "caf\xe9"}]', "line 2: not UTF-8 text (0xe9 at byte 14)"),
        ("a.csv", b"text\na\ncaf\xe9\n", "line 3: not UTF-8 text (0xe9 at byte 3)"),
        ("a.txt", b"one\ncaf\xe9\n", "line 2: not UTF-8 text (0xe9 at byte 3)"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"}', "the array does not end: the file is cut off"),
        ("a.json", b'[{"text": "a"}] x', "line 1: more text after the end of the array"),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]',
         "line 2: not JSON (Expecting ':' delimiter at line 2 column 9"),
        ("a.json", b'{"data": [{"text": "a"}]}', "data holds a list: if these are the rows, make it the file"),
        ("a.json", b'[[{"role": "user", "content": "a"}]]', "line 1: a JSON object expected, not list"),
        ("a.jsonl", b'{"role": "user", "content": "a"}', "a message by itself: a row holds a whole chat"),
        ("a.jsonl", b"prompt,completion\na,b\nc,d", "a.jsonl: not JSON (it begins with 'prompt,completion')"),
        ("a.jsonl", b"[" * 100_000, "not JSON (nested too deep)"),
        ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2: not JSON (nested too deep)"),
        ("a.json", b'{"text": "a",\n"b": [1,', "a.json line 1: not JSON"),
        ("a.csv", b"question,answer\na,b", "line 1: no column that is known (question, answer)"),
        ("a.csv", b"prompt,completion\na,b\nc", "line 3: 1 cells, the first line has 2"),
        ("a.csv", b'prompt,completion\na,"b', "line 2: not CSV"),
        ("a.csv", b"text,text\na,b", "line 1: two columns have one name"),
        ("a.jsonl", (USER + '{"role": "robot", "content": "b"}]}').encode(),
         "messages, message 2: role 'robot' is not known"),
        ("a.jsonl", (USER[:-2] + "]}").encode(), "messages has no message of the assistant"),
        ("a.jsonl", b'{"messages": []}', "messages is empty"),
        ("a.jsonl", b'{"messages": "a"}', "messages must be a list of messages, not str"),
        ("a.jsonl", b'{"messages": null}', "messages must be a list of messages, not null"),
        ("a.jsonl", (USER + '{"role": ' + SAYS + "null}]}").encode(), "message 2: content is null"),
        ("a.jsonl", (USER + '{"role": ' + SAYS + '[{"type": "image_url"}]}]}').encode(),
         "content has parts that are not text (image_url)"),
        ("a.jsonl", (USER + '{"role": ' + SAYS + '"b", "weight": 2}]}').encode(), "weight must be 0 or 1, not 2"),
        ("a.jsonl", gzip.compress(b'{"text": "a"}', mtime=0), "a.jsonl: this is a gzip archive"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", "a.jsonl: this is a zstd archive"),
        ("a.jsonl.gz", b'{"text": "a"}', "a.jsonl.gz: named .gz, but not a gzip archive"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9999, mtime=0)[:60],
         "damaged gzip archive (Compressed file ended"),
        ("a.jsonl.gz", gzip.compress(json.dumps({"text": "".join(map(str, range(200_000)))}).encode(), mtime=0)[:-9],
         "a.jsonl.gz: cannot be read to its end"),
        ("a.tar.gz", gzip.compress(b"\0" * 257 + b"ustar" + b"\0" * 999, mtime=0), "this is a tar archive"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "a.jsonl: this is UTF-16 text; UTF-8 is read"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), "a.jsonl: this is UTF-16 text; UTF-8 is read"),
        ("a.csv", "text\na".encode("utf-32"), "a.csv: this is UTF-32 text"),
        ("a.jsonl", bytes(range(256)), "a.jsonl: binary data, not text"),
        ("a.jsonl", b"PAR1......PAR1", "a.jsonl: this is a Parquet file"),
        ("a.parquet", b'{"text": "a"}', "a.parquet: named .parquet, but not a Parquet file"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "this is an HTML page"),
        ("a.jsonl", b"%PDF-1.7", "this is a PDF document"),
        ("a.arrow", b"ARROW1..", "this is an Arrow file"),
        ("a.xyz", b"hello", "a.xyz: not a known kind of data file"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = wrong(path)
    assert len(found) == 1, found
    assert said in found[0]


def test_a_zip_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.jsonl", "w") as archive:
        archive.writestr("x", "y")
    assert wrong(tmp_path / "a.jsonl") == ["a.jsonl: this is a zip archive (or an Excel file)"]


def test_a_directory_is_its_files_by_name(tmp_path: Path) -> None:
    real, folder = tmp_path / "real", tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (real / "deep").mkdir(parents=True)
    (real / "c.jsonl").write_text('{"text": "c"}')
    (real / "deep" / "e.json").write_text('[{"text": "e"}]')
    (folder / "b.csv").write_text("text\nb")
    (folder / "a.jsonl").write_text('{"text": "a"}')
    (folder / "c.jsonl").symlink_to(Path("../real/c.jsonl"))
    (folder / "more" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "d"}'))
    (folder / "more" / "e").symlink_to(real / "deep")
    (folder / "more" / "around").symlink_to(folder)
    for name in (".hidden.jsonl", "README.md", "_SUCCESS", "LICENSE.txt", "dataset_infos.json", ".DS_Store"):
        (folder / name).write_text("x")
    assert [v["text"] for v in read(folder)] == ["a", "b", "c", "d", "e"]
    assert [v["text"] for v in read(folder / "b.csv", folder / "a.jsonl")] == ["b", "a"]
    (folder / "notes.docx").write_text("x")
    with pytest.raises(rows.RowsError, match=r"notes\.docx: not a data file"):
        rows.files(folder)


def test_directories_that_are_no_channel(tmp_path: Path) -> None:
    with pytest.raises(rows.RowsError, match="no data files in this directory"):
        rows.files(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
    with pytest.raises(rows.RowsError, match=r"holds train\.jsonl and test\.jsonl"):
        rows.files(tmp_path)
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    with pytest.raises(rows.RowsError, match="a link to nowhere, which is not there"):
        rows.files(tmp_path / "link.jsonl")
    with pytest.raises(rows.RowsError, match="no such file"):
        rows.files(tmp_path / "none.jsonl")


def test_files_of_two_formats_in_one_channel(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    assert wrong(tmp_path) == ["b.jsonl line 1: has prompt and completion, the rows before it have text"]


def test_a_row_of_megabytes_and_one_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = [{"text": "x" * 3_000_000}, {"text": "y"}]
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(lines(big) if name == "a.jsonl" else json.dumps(big))
        assert read(tmp_path / name) == big
    monkeypatch.setattr(rows, "MAX_ROW", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + lines(big))
    assert wrong(tmp_path / "a.jsonl") == ["a.jsonl line 2: longer than 1 MiB"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}), min_size=1, max_size=8))
def test_any_text_survives_any_form(tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("forms")
    for name in (
        "rows.jsonl",
        "array.json",
        "pretty.json",
        "objects.json",
        "objects.jsonl",
        "plain.jsonl",
        "bom.jsonl",
    ):
        (folder / name).write_bytes(FORMS[name](values))
        assert read(folder / name) == values, name


@given(
    st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a", "a.jsonl.gz", "a.parquet"])
)
def test_any_bytes_are_rows_or_one_line_each(tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(raw)
    found = list(rows.read(path))
    assert found
    assert all(isinstance(row, Row) or "\n" not in str(row) for row in found)
