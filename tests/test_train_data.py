"""train/data.py: rows of one shape, loss where it belongs, and errors that name file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from train.data import IGNORED, DataError, build_rows, read_examples


class WordTokenizer:
    """One token per word; 0 is the end of sequence, which also pads."""

    eos_token_id = 0
    pad_token_id = 0

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


def test_loss_is_taken_on_the_answer_and_its_end_only() -> None:
    rows = build_rows([{"prompt": "a bb ccc", "completion": " dddd"}], WordTokenizer(), 8)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 0, 0, 0, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert rows.labels.tolist() == [[IGNORED] * 3 + [4, 0] + [IGNORED] * 3]


def test_texts_are_joined_and_cut_into_full_blocks() -> None:
    rows = build_rows([{"text": "a bb"}, {"text": "ccc dddd eeeee"}], WordTokenizer(), 3)
    assert rows.input_ids.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert (rows.labels == rows.input_ids).all()


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=20), st.integers(4, 16))
def test_every_row_has_the_one_shape_and_nothing_is_cut(lengths: list[tuple[int, int]], block: int) -> None:
    examples = [{"prompt": "x " * p, "completion": "y " * c} for p, c in lengths]
    fitting = [(p, c) for p, c in lengths if p + c + 1 <= block]
    if not fitting:
        with pytest.raises(DataError, match="no example fits"):
            build_rows(examples, WordTokenizer(), block)
        return
    rows = build_rows(examples, WordTokenizer(), block)
    assert rows.input_ids.shape == (len(fitting), block)
    assert rows.dropped == len(lengths) - len(fitting)
    assert rows.attention_mask.sum(axis=1).tolist() == [p + c + 1 for p, c in fitting]
    assert (rows.labels != IGNORED).sum(axis=1).tolist() == [c + 1 for _, c in fitting]
    assert len(rows) == len(fitting)
    assert rows[0]["labels"].shape == (block,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "rows.jsonl: no rows"),
        ('{"text": "a"}\n{', "rows.jsonl line 2: not JSON"),
        ('\n{"prompt": "a"}', "rows.jsonl line 2: completion is missing"),
        ('{"prompt": "a", "completion": 1}', "line 1"),
        ("[1]", "line 1"),
        (
            '{"text": "a"}\n{"prompt": "a", "completion": "b"}',
            "line 2: has prompt and completion, the rows before it have text",
        ),
    ],
)
def test_damaged_data_is_told_by_file_and_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_examples(path, None)
    assert said in str(error.value)


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nbroken')
    assert len(read_examples(path, 2)) == 2


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = WordTokenizer()
    tokenizer.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(DataError, match="no end-of-sequence token"):
        build_rows([{"text": "a"}], tokenizer, 4)
