"""train/: texts, tokens and rows, without a device: loss where it belongs, one beginning, one end, nothing lost."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from containers.rows import Reading, Row
from train import packing
from train.data import DataError, Options, chosen_template, from_files, from_hub, lay_out, prepare, tokenise
from train.packing import IGNORED, Sequences
from train.render import RenderError, render
from train.tokens import Encoder


class Words:
    """A tokenizer as transformers has it: one token a word with the blank in front; <s> and </s> are special."""

    is_fast = True
    chat_template: str | None = None
    pad_token_id: int | None = None

    def __init__(self, adds_bos: bool = False) -> None:
        self.known = ["<s>", "</s>", "<turn>", "[/turn]"]
        self.adds_bos, self.backend_tokenizer = adds_bos, self
        self.bos_token_id, self.eos_token_id = 0, 1
        self.cut = True

    def __len__(self) -> int:
        return 50_000

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0] * self.adds_bos + self.encode(text).ids}

    def no_truncation(self) -> None:
        self.cut = False

    def no_padding(self) -> None:
        pass

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {i: type("Token", (), {"special": True}) for i in range(4)}

    def encode(self, text: str, add_special_tokens: bool = False) -> Any:
        found = list(re.finditer(r"</?s>|<turn>|\[/turn\]|\s*[^\s<\[]+|\s+|.", text))
        for match in found:
            if match.group() not in self.known:
                self.known.append(match.group())
        ids = [self.known.index(m.group()) for m in found]
        limit = 3 if self.cut else None
        return type("Encoding", (), {"ids": ids[:limit], "offsets": [m.span() for m in found][:limit]})

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        assert not add_special_tokens
        return [self.encode(text) for text in texts]

    encode_batch_fast = encode_batch

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.known[i] for i in ids)

    def apply_chat_template(self, messages: Any, tools: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        text = "".join(f"<turn>{m['role']} {m['content']}[/turn]\n" for m in messages)
        return text + ("<turn>assistant " if add_generation_prompt else "")


def rows_of(values: list[dict[str, Any]], format_: str) -> Iterator[Row]:
    for i, value in enumerate(values, start=1):
        yield Row(Path("a.jsonl"), f"line {i}", format_, value)


def examples(pairs: list[tuple[str, str]]) -> Iterator[Row]:
    return rows_of([{"prompt": p, "completion": c} for p, c in pairs], "prompt_completion")


def made(found: Iterator[Row], tokenizer: Words | None = None, **how: Any) -> Any:
    return prepare(found, None, tokenizer or Words(), Options(**{"block_size": 8, **how}), [Reading(), Reading()])


def text_of(tokenizer: Words, rows: packing.Rows, i: int = 0) -> tuple[str, str]:
    """(the row's text, the part of it that the loss is taken on)."""
    row = rows[i]
    kept = row["attention_mask"] == 1
    ids, labels = row["input_ids"][kept].tolist(), row["labels"][kept]
    wanted = [i for i, label in zip(ids, labels, strict=True) if label != IGNORED]
    return tokenizer.decode(ids, False), tokenizer.decode(wanted, False)


# -- where the loss is taken


def test_loss_is_taken_on_the_answer_and_its_end_only() -> None:
    words = Words()
    data = made(examples([("a bb ccc", " dddd e")]), words)
    assert text_of(words, data.train) == ("a bb ccc dddd e</s>", " dddd e</s>")
    assert data.train[0]["attention_mask"].tolist() == [1] * 6 + [0] * 2
    assert data.train[0]["labels"].tolist()[-2:] == [IGNORED] * 2
    assert data.ends == (1,)


def test_train_on_all_takes_it_on_everything_that_is_predicted() -> None:
    words = Words()
    assert text_of(words, made(examples([("a bb", " c")]), words, train_on="all").train) == (
        "a bb c</s>",
        " bb c</s>",
    )


def test_a_token_that_begins_in_the_prompt_belongs_to_the_answer() -> None:
    words = Words()
    assert text_of(words, made(examples([("a b", "b c")]), words).train) == ("a bb c</s>", " bb c</s>")


CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello you"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "bye bye"},
]


def test_loss_is_taken_on_the_assistants_turns_and_their_ends() -> None:
    words = Words()
    words.chat_template = "x"
    data = made(rows_of([{"messages": CHAT}], "messages"), words, block_size=40)
    said = "<turn>system be kind[/turn]\n<turn>user hi[/turn]\n<turn>assistant hello you[/turn]\n"
    said += "<turn>user bye[/turn]\n<turn>assistant bye bye[/turn]</s>"
    assert text_of(words, data.train) == (said, " hello you[/turn] bye bye[/turn]</s>")
    assert data.ends == (1, 3), "generation has to stop at the end of a turn, too"


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"messages": [*CHAT[:2], {**CHAT[2], "weight": 0}, *CHAT[3:]]}, ["bye bye[/turn]"]),
        ({"messages": [*CHAT, {"role": "user", "content": "one more"}]}, ["hello you[/turn]", "bye bye[/turn]"]),
        ({"messages": CHAT, "answers_from": 4}, ["bye bye[/turn]"]),
        ({"messages": CHAT[2:]}, ["hello you[/turn]", "bye bye[/turn]"]),
    ],
)
def test_which_turns(change: dict[str, Any], trained: list[str]) -> None:
    found = render("messages", change, apply_of(Words()), "completions")
    assert [found.text[a:b].strip() for a, b in found.answers] == trained


def apply_of(words: Words) -> Any:
    return lambda messages, tools, add_generation_prompt: words.apply_chat_template(
        messages, tools, False, add_generation_prompt
    )


def test_a_template_that_writes_earlier_turns_otherwise() -> None:
    """Qwen 3 leaves the reasoning out of all turns but the last: what is before is no beginning of the whole."""

    def apply(messages: Any, tools: Any, add_generation_prompt: bool) -> str:
        last = len(messages) - 1
        said = [m["content"] if i == last else m["content"].replace("<think>", "") for i, m in enumerate(messages)]
        text = "".join(f"<turn>{m['role']} {c}[/turn]" for m, c in zip(messages, said, strict=True))
        return text + ("<turn>assistant " if add_generation_prompt else "")

    chat = [{**m, "content": m["content"]} for m in CHAT]
    chat[1]["content"] = "<think>hi"
    found = render("messages", {"messages": chat}, apply, "completions")
    assert [found.text[a:b] for a, b in found.answers] == ["hello you[/turn]", "bye bye[/turn]"]


def test_chats_that_cannot_be_put_into_a_text() -> None:
    chat = {"messages": CHAT}
    with pytest.raises(RenderError, match="the model has none: set chat_template"):
        render("messages", chat, None, "completions")

    def refuses(messages: Any, tools: Any, add_generation_prompt: bool) -> str:
        raise ValueError("roles must alternate")

    with pytest.raises(RenderError, match="the chat template refuses it \\(roles must alternate\\)"):
        render("messages", chat, refuses, "completions")

    def loses(messages: Any, tools: Any, add_generation_prompt: bool) -> str:
        return "nothing"

    with pytest.raises(RenderError, match="message 3 of the assistant is not to be found"):
        render("messages", chat, loses, "completions")
    calls = {"messages": [CHAT[1], {"role": "assistant", "content": "", "tool_calls": [{}]}]}
    apply = apply_of(Words())
    plain = apply
    plain.source = "no such thing"  # type: ignore[attr-defined]
    with pytest.raises(RenderError, match="leaves tool_calls out"):
        render("messages", calls, plain, "completions")


def test_alpaca_with_and_without_a_template() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    plain = render("alpaca", row, None, "completions")
    assert plain.text.startswith("Below is an instruction that describes a task, paired with an input")
    assert plain.text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3")
    assert plain.text[slice(*plain.answers[0])] == "3"
    short = render("alpaca", {"instruction": "Add.", "output": "3"}, None, "completions")
    assert "### Input" not in short.text
    chat = render("alpaca", {**row, "system": "s", "history": [["q", "r"]]}, apply_of(Words()), "completions")
    turns = ("system s", "user q", "assistant r", "user Add.\n1 2", "assistant 3")
    assert chat.text == "".join(f"<turn>{turn}[/turn]\n" for turn in turns)
    assert [chat.text[a:b] for a, b in chat.answers] == ["3[/turn]"]
    with pytest.raises(RenderError, match="history and system need a chat template"):
        render("alpaca", {**row, "system": "s"}, None, "completions")
    braces = render("alpaca", {"instruction": "{input}", "output": "{x}"}, None, "completions")
    assert braces.text.endswith("{x}")


# -- one beginning, one end


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("before", ["", "<s>", "<s><s>"])
@pytest.mark.parametrize("after", ["", "</s>", "</s></s>", "</s>\n\n", "</s> \n</s>"])
@pytest.mark.parametrize("kind", ["text", "answer"])
def test_exactly_one_beginning_and_one_end(adds_bos: bool, before: str, after: str, kind: str) -> None:
    words = Words(adds_bos)
    if kind == "text":
        found = rows_of([{"text": f"{before}a bb ccc{after}"}], "text")
    else:
        found = examples([(f"{before}a", f" bb ccc{after}")])
    rows = made(found, words, block_size=3 if kind == "text" else 8).train
    whole = "".join(text_of(words, rows, i)[0] for i in range(len(rows)))
    begin = "<s>" if adds_bos or before else ""
    assert whole == f"{begin}a bb ccc</s>"


def test_ends_inside_of_a_text_stay() -> None:
    words = Words(adds_bos=True)
    rows = made(rows_of([{"text": "<s>a</s><s>b</s>"}], "text"), words, block_size=2).train
    assert "".join(text_of(words, rows, i)[0] for i in range(len(rows))) == "<s>a</s><s>b</s>"


def test_a_limit_in_the_tokenizers_file_cuts_nothing() -> None:
    words = Words()
    assert words.cut
    assert text_of(words, made(examples([("a b c d", " e")]), words).train)[0] == "a b c d e</s>"


def test_turns_that_end_with_another_token_than_the_sequence_are_reported() -> None:
    words = Words()
    words.chat_template = "x"
    words.apply_chat_template = lambda messages, tools, tokenize, add_generation_prompt: (
        "".join(  # type: ignore[method-assign]
            f"<turn>{m['role']} {m['content']}[/turn]" for m in messages
        )
        + ("<turn>assistant " if add_generation_prompt else "")
    )
    data = made(rows_of([{"messages": CHAT[1:3]}], "messages"), words, block_size=20)
    assert text_of(words, data.train)[0].endswith("[/turn]</s>")
    assert data.ends == (1, 3)
    assert made(examples([("a", " b[/turn]")] * 20), words).ends == (1, 3), "written by the user"
    assert made(examples([("a", " b[/turn]"), ("a", " b")]), words).ends == (1,), "by chance"
    assert made(examples([("a", " b<s>")]), words).ends == (1,)


def test_tokenizers_that_cannot_be_used() -> None:
    slow, endless = Words(), Words()
    slow.is_fast = False
    endless.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"save the tokenizer as tokenizer\.json"):
        Encoder(slow)
    with pytest.raises(DataError, match="no end-of-sequence token"):
        Encoder(endless)


# -- texts


def test_texts_are_joined_cut_and_no_tail_is_lost() -> None:
    words = Words()
    rows = made(rows_of([{"text": "a bb"}, {"text": "ccc dd e"}], "text"), words, block_size=3).train
    assert [text_of(words, rows, i)[0] for i in range(3)] == ["a bb</s>", "ccc dd e", "</s>"]
    assert rows[0]["labels"].tolist()[0] == IGNORED, "nothing predicts a row's first token"
    assert rows[1]["labels"].tolist()[1:] == rows[1]["input_ids"].tolist()[1:]
    assert rows[2]["labels"].tolist() == [IGNORED] * 3


def test_a_corpus_shorter_than_one_block_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match="train: 21 tokens, one block needs 64"):
        made(rows_of([{"text": " a" * 21}], "text"), block_size=64)
    with pytest.raises(DataError, match="train: no text in 2 rows"):
        made(rows_of([{"text": ""}, {"text": ""}], "text"), block_size=4)


def test_the_lines_of_a_text_file_are_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.PIECE", 40)
    text = "".join(f"line {i}\n\n  more words of it\nand of it\n" for i in range(40))
    (tmp_path / "a.txt").write_text(text)
    words = Words(adds_bos=True)
    rows = made(from_files([tmp_path / "a.txt"], Reading(), None), words, block_size=16).train
    assert "".join(text_of(words, rows, i)[0] for i in range(len(rows))) == f"<s>{text}</s>"


# -- too long, too little


def test_examples_that_are_too_long() -> None:
    pairs = [("a", " b")] * 60 + [("a " * 9, " b"), ("a b", " c" * 9)]
    data = made(examples(pairs))
    assert len(data.train) == 60
    assert any("62 examples" in line and "0 truncated, 2 dropped" in line for line in data.lines)
    assert any(line.startswith("warning: train: 2 of 62 examples (3.2%) are longer") for line in data.lines)
    cut = made(examples(pairs), too_long="truncate")
    assert len(cut.train) == 61, "of one nothing is left to train on"
    assert any("2 truncated, 0 dropped" in line for line in cut.lines)
    assert any("1 of 62 examples have nothing to train on" in line for line in cut.lines)
    assert cut.train[60]["labels"].tolist()[-1] != 1, "an example that was cut does not end"
    with pytest.raises(DataError, match=r"no example fits \(1 are longer, the shortest has 11 tokens\)"):
        made(examples([("a " * 9, " b")]))
    assert not any("warning" in line for line in made(examples([("a", " b")] * 200 + pairs[-1:])).lines)


def test_one_example_is_shown_with_its_mask() -> None:
    lines = made(examples([("a bb", " c")])).lines
    assert lines[-3:] == ("first example, 4 tokens:", "  no loss 'a bb'", "  loss    ' c</s>'")


def test_problems_are_bounded_and_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n' + "broken\n" * 100)
    assert len(list(from_files([path], Reading(), 2))) == 2
    with pytest.raises(DataError) as error:
        list(from_files([path], Reading(), None))
    said = str(error.value).splitlines()
    assert said[0] == "rows.jsonl line 3: not JSON (Expecting value at column 1)"
    assert len(said) == 6
    assert said[-1] == "there may be more like these"
    path.write_text('{"text": "a"}\nbroken')
    with pytest.raises(DataError, match="line 2"):
        list(from_files([path], Reading(), None))


def test_rows_of_the_hub_follow_the_same_rules() -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": [{"role": "user", "content": "a"}]}]
    with pytest.raises(DataError) as error:
        list(from_hub(rows, "owner/name", Reading(), None))
    assert str(error.value).splitlines() == [
        "name row 2: text is null; it must be text",
        "name row 3: text must be text, not a list of messages; name the column: messages",
    ]
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    assert [row.format for row in from_hub(chats, "owner/name", Reading(), None)] == ["messages"]


def test_templates_by_name_and_file(tmp_path: Path) -> None:
    assert "<|im_start|>" in chosen_template("chatml")
    assert chosen_template("{{ messages }}") == "{{ messages }}"
    (tmp_path / "a.jinja").write_text("\ufeff{% for m in messages %}{% endfor %}", encoding="utf-8")
    assert chosen_template(str(tmp_path / "a.jinja")).startswith("{%")
    (tmp_path / "b.jinja").write_text("hello")
    for name, said in ((str(tmp_path / "b.jinja"), "no Jinja template"), ("chatmll", "neither a name")):
        with pytest.raises(DataError, match=said):
            chosen_template(name)


def test_ids_that_the_model_has_no_embedding_for() -> None:
    from train.data import outside

    rows = made(examples([("a bb", " c")])).train
    assert outside(rows, 7) == ""
    assert "the tokenizer makes id 6, the model has embeddings for 6 tokens" in outside(rows, 6)


# -- validation


@pytest.mark.parametrize("count", [2, 30, 400])
def test_a_split_by_seed_shares_no_example_and_loses_none(count: int) -> None:
    words = Words()
    pairs = [(f"q{i}", f" a{i}") for i in range(count)]
    data = made(examples(pairs), words, split_percentage=10, seed=3)
    again = made(examples(pairs), words, split_percentage=10, seed=3)
    other = made(examples(pairs), words, split_percentage=10, seed=4)
    assert data.validation is not None and again.validation is not None and other.validation is not None
    assert len(data.validation) == max(1, count // 10)
    parts = [[text_of(words, rows, i)[0] for i in range(len(rows))] for rows in (data.train, data.validation)]
    assert sorted(parts[0] + parts[1]) == sorted(f"q{i} a{i}</s>" for i in range(count))
    assert data.validation.digest() == again.validation.digest()
    assert count == 2 or data.validation.digest() != other.validation.digest()


def test_one_example_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 example cannot be split"):
        made(examples([("a", " b")]), split_percentage=10)


def test_of_one_document_the_last_part_is_taken() -> None:
    words = Words()
    data = made(rows_of([{"text": " ".join(f"w{i}" for i in range(199))}], "text"), words, split_percentage=10)
    assert data.validation is not None
    assert [rows.lengths.sum() for rows in (data.train, data.validation)] == [180, 20]
    assert text_of(words, data.validation)[0].startswith(" w180 w181")


# -- packing


LENGTHS = st.lists(st.integers(1, 32), min_size=1, max_size=60)


@given(LENGTHS)
def test_best_fit_places_every_item_once_and_overfills_no_bin(lengths: list[int]) -> None:
    bins = packing.best_fit(lengths, 32)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 32 for members in bins)
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // 32) + 4 + sum(n > 16 for n in lengths)
    assert packing.best_fit(lengths, 32) == bins


def test_best_fit_finds_the_smallest_room() -> None:
    assert packing.best_fit([6, 4, 3, 5, 2], 8) == [[0, 4], [3, 2], [1]]
    for wrong in (9, 0):
        with pytest.raises(ValueError, match="does not fit into 8"):
            packing.best_fit([wrong], 8)


def sequences(lengths: list[int]) -> Sequences:
    total = sum(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Sequences(np.arange(1, total + 1, dtype=np.uint16), np.ones(total, np.uint8), starts)


@given(LENGTHS, st.integers(0, 3))
def test_packed_rows_hold_every_example_whole_and_apart(lengths: list[int], seed: int) -> None:
    whole = sequences(lengths)
    rows = packing.packed(whole, np.arange(len(lengths)), 32, 0, seed)
    seen = []
    for i in range(len(rows)):
        row = rows[i]
        names = ["attention_mask", "input_ids", "labels", "position_ids", "segment_ids"]
        assert sorted(row) == names
        assert all(row[name].shape == (32,) and row[name].dtype == np.int64 for name in names)
        for segment in range(1, row["segment_ids"].max() + 1):
            places = np.flatnonzero(row["segment_ids"] == segment)
            assert (np.diff(places) == 1).all()
            assert row["position_ids"][places].tolist() == list(range(len(places)))
            assert row["labels"][places[0]] == IGNORED
            assert (row["labels"][places[1:]] == row["input_ids"][places[1:]]).all()
            seen.append(row["input_ids"][places].tolist())
        assert ((row["segment_ids"] > 0) == (row["attention_mask"] == 1)).all()
        assert (np.diff(row["attention_mask"]) <= 0).all(), "right padded"
    starts = whole.starts
    assert sorted(seen) == [list(range(a + 1, b + 1)) for a, b in itertools.pairwise(starts)]
    assert rows.digest() == packing.packed(whole, np.arange(len(lengths)), 32, 0, seed).digest()


@given(LENGTHS, st.integers(1, 40))
def test_a_stream_loses_no_token(lengths: list[int], block: int) -> None:
    whole = sequences(lengths)
    order = np.arange(len(lengths))[::-1]
    rows = packing.stream(whole, order, block, 0)
    found = [rows[i] for i in range(len(rows))]
    tokens = [int(t) for row in found for t in row["input_ids"][row["attention_mask"] == 1]]
    wanted = [int(t) for i in order for t in whole.tokens[whole.starts[i] : whole.starts[i + 1]]]
    assert tokens == wanted
    assert rows.lengths.tolist() == [block] * (len(rows) - 1) + [sum(lengths) - block * (len(rows) - 1)]


def test_padding_of_the_kind_of_data_that_packing_is_for() -> None:
    """Lengths like those of chats: most of them short, some long; at most 2 % of rows of 512 are padding."""
    lengths = np.clip(np.random.RandomState(0).lognormal(4.4, 1.1, 4000), 4, 512).astype(int).tolist()
    rows = packing.packed(sequences(lengths), np.arange(len(lengths)), 512, 0, 0)
    assert rows.filled > 0.98


def test_who_attends_to_whom() -> None:
    allowed = packing.block_diagonal(np.array([[1, 1, 2, 2, 0, 0]]))
    assert allowed.shape == (1, 1, 6, 6)
    assert allowed[0, 0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_packed_rows_without_their_segments_are_not_trained_on() -> None:
    """transformers' Trainer removes what the model's forward does not name; no loss would tell."""
    with pytest.raises(RuntimeError, match="have lost their segment_ids"):
        packing.attention({"input_ids": 1, "position_ids": 1}, None)
    assert packing.attention({"input_ids": 1}, None) == {"input_ids": 1}


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=20), st.integers(4, 16))
def test_every_row_has_the_one_shape_and_nothing_is_cut(lengths: list[tuple[int, int]], block: int) -> None:
    pairs = [("x " * p, "y " * c) for p, c in lengths]
    encoder, options = Encoder(Words()), Options(block)
    found, counts, _ = tokenise(examples(pairs), encoder, None, options)
    assert counts.examples == len(lengths)
    assert counts.dropped + len(found) == len(lengths)
    for how in (False, True):
        rows = lay_out(found, counts, np.arange(len(found)), encoder, Options(block, packing=how))
        labels = sum(int((rows[i]["labels"] != IGNORED).sum()) for i in range(len(rows)))
        tokens = sum(int(rows[i]["attention_mask"].sum()) for i in range(len(rows)))
        assert tokens == int(found.lengths.sum()) == int(rows.lengths.sum())
        assert labels == int(found.trained.sum()), "packed or not, as many predictions"
