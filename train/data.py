"""From data files or a hub data set to rows of exactly `block_size` tokens: one batch signature for static shapes.

Rows are read by containers/rows.py, put into texts by train/render.py, tokenised by train/tokens.py, once, and laid
out by train/packing.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from containers import rows as channel
from containers.rows import Bad, Reading, Row, RowsError
from train import packing
from train.packing import IGNORED, Rows, Sequences
from train.render import TEMPLATES, Rendered, RenderError, render
from train.tokens import DataError, Encoder, Store, labelled

__all__ = ["IGNORED", "DataError", "Options", "Prepared", "Rows", "prepare"]

TOLD = 5  # problems of a channel that are printed; more of them say the same
WARN_DROPPED = 0.01
BATCH = 1 << 21  # characters tokenised at a time: enough for all threads, little enough for any memory
PIECE = 1 << 18  # characters of a text file that are tokenised as one text


@dataclass(frozen=True)
class Options:
    """How data becomes rows. The fields are arguments of the trainer (train/arguments.py says what they mean)."""

    block_size: int
    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    train_on: str = "completions"
    too_long: str = "drop"
    packing: bool = False
    split_percentage: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """The rows of a job. `ends`: the tokens that its sequences end with, the tokenizer's own first."""

    train: Rows
    validation: Rows | None
    ends: tuple[int, ...]
    lines: tuple[str, ...]  # for the job's log


@dataclass
class Counts:
    """What became of the examples."""

    examples: int = 0
    truncated: int = 0
    dropped: int = 0
    unanswered: int = 0  # nothing to train on: weight 0, or cut off
    empty: int = 0  # texts of no characters
    shortest_dropped: int = 0
    format: str = ""
    unused: tuple[str, ...] = ()


# -- reading ---------------------------------------------------------------------------------------------------------


def from_files(sources: Sequence[Path], reading: Reading, limit: int | None) -> Iterator[Row]:
    """The rows of a channel's files. Raises DataError with the first problems, once that many are found."""
    try:
        yield from _good(channel.read(list(sources), reading), limit)
    except RowsError as error:
        raise DataError(f"{error}" + (f": {error.hint}" if error.hint else "")) from None


def from_hub(data: Any, name: str, reading: Reading, limit: int | None) -> Iterator[Row]:
    """The rows of a split of a hub data set, by the same rules."""

    def checked() -> Iterator[Row | Bad]:
        for number, values in enumerate(data, start=1):
            made = channel.check(values, reading)
            where, file = f"row {number}", Path(name)
            yield Bad(file, where, made) if isinstance(made, str) else Row(file, where, reading.format or "", made)

    yield from _good(checked(), limit)


def _good(found: Iterable[Row | Bad], limit: int | None) -> Iterator[Row]:
    bad: list[str] = []
    for row in islice(found, limit):
        if isinstance(row, Bad):
            bad.append(f"{row}" + (f": {row.hint}" if row.hint else ""))
            if len(bad) >= TOLD:
                bad.append("there may be more like these")
                break
        elif not bad:
            yield row
    if bad:
        raise DataError("\n".join(bad))


def batches(found: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows, about BATCH characters at a time; the lines of a document are joined to pieces of about PIECE."""
    batch: list[Row] = []
    size = 0
    for row in _pieces(found):
        batch.append(row)
        size += _size(row.values)
        if size > BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(v) for v in value.values())
    return sum(_size(v) for v in value) if isinstance(value, list) else 8


def _pieces(found: Iterable[Row]) -> Iterator[Row]:
    """A piece ends where a line with no blank in front follows one that is not blank: no tokenizer joins the two."""
    parts: list[str] = []
    size = 0
    last: Row | None = None
    for row in found:
        text = row.values.get("text", "") if last or row.more else ""
        if last and size > PIECE and parts[-1].strip() and text[:1].strip():
            yield Row(last.file, last.where, "text", {"text": "".join(parts)}, more=True)
            parts, size = [], 0
        if not last and not row.more:
            yield row
            continue
        parts.append(text)
        size += len(text)
        last = row
        if not row.more:
            yield Row(row.file, row.where, "text", {"text": "".join(parts)})
            parts, size, last = [], 0, None


# -- tokenising ------------------------------------------------------------------------------------------------------


def tokenise(
    found: Iterable[Row], encoder: Encoder, apply: Any, options: Options
) -> tuple[Sequences, Counts, set[int]]:
    """(all sequences, what became of the examples, the marks that turns of chats end with).

    Raises DataError for the first rows that cannot be put into a text.
    """
    with closing(Store(len(encoder.tokenizer))) as store:
        counts, ends = _tokenise(found, encoder, apply, options, store)
        return store.sequences(), counts, ends


def _tokenise(
    found: Iterable[Row], encoder: Encoder, apply: Any, options: Options, store: Store
) -> tuple[Counts, set[int]]:
    counts, ends = Counts(), Counter[int]()
    begun = False  # a document that goes on in the next piece
    for batch in batches(found):
        counts.format = counts.format or batch[0].format
        if batch[0].format == "text":
            for row, ids in zip(batch, encoder.ids([r.values["text"] for r in batch])):  # noqa: B905 (3.10)
                begun = _document(row, ids, begun, encoder, store, counts)
            continue
        made = _rendered(batch, apply, options.train_on)
        for example, (ids, places) in zip(made, encoder.places([m.text for m in made])):  # noqa: B905
            sequence, trained = labelled(example, ids, places, encoder)
            if len(sequence) > 1 and sequence[-2] in encoder.special and trained[-2]:
                ends[sequence[-2]] += 1
            _example(sequence, trained, options, store, counts)
    # A mark that ends nearly every answer ends answers; any other special token may stand there by chance.
    return counts, {mark for mark, times in ends.items() if times > 0.9 * counts.examples}


def _rendered(batch: list[Row], apply: Any, train_on: str) -> list[Rendered]:
    out = []
    bad: dict[
        str, str
    ] = {}  # reason -> its first row: the rows of a set are alike, and so is what is wrong with them
    for row in batch:
        try:
            out.append(render(row.format, row.values, apply, train_on))
        except RenderError as error:
            bad.setdefault(str(error), f"{row.file.name} {row.where}: {error}")
    if bad:
        raise DataError("\n".join(list(bad.values())[:TOLD]))
    return out


def _document(row: Row, ids: list[int], begun: bool, encoder: Encoder, store: Store, counts: Counts) -> bool:
    """Write a text or a piece of one; whether it goes on."""
    if not begun:
        counts.examples += 1
        before, skip = encoder.begun(ids)
        ids = ids[skip:]
        if not ids and not row.more:
            counts.empty += 1
            return False
        store.write(before, 1)
    if not row.more:
        if not {encoder.eos, *encoder.special}.isdisjoint(ids[-8:]):
            blank = [not encoder.decode([i]).strip() for i in ids[-8:]]
            ids = ids[: encoder.stop(ids, lambda i: i >= len(ids) - 8 and blank[i - len(ids)])]
        ids = [*ids, encoder.eos]
    store.write(ids, 1)
    if not row.more:
        store.end()
    return row.more


def _example(ids: list[int], trained: Any, options: Options, store: Store, counts: Counts) -> None:
    counts.examples += 1
    if len(ids) > options.block_size:
        if options.too_long == "drop":
            counts.dropped += 1
            counts.shortest_dropped = min(counts.shortest_dropped or len(ids), len(ids))
            return
        ids, trained = ids[: options.block_size], trained[: options.block_size]
        counts.truncated += 1
    if not trained[1:].any():
        counts.unanswered += 1
        return
    store.write(ids, trained)
    store.end()


# -- rows ------------------------------------------------------------------------------------------------------------


def lay_out(sequences: Sequences, counts: Counts, chosen: Any, encoder: Encoder, options: Options) -> Rows:
    """Rows of the `chosen` sequences: documents as a stream, examples one a row or packed."""
    if counts.format == "text":
        return packing.stream(sequences, chosen, options.block_size, encoder.pad)
    if options.packing:
        return packing.packed(sequences, chosen, options.block_size, encoder.pad, options.seed)
    return packing.one_each(sequences, chosen, options.block_size, encoder.pad)


def halves(sequences: Sequences, format_: str, percentage: int, seed: int) -> tuple[Sequences, Any, Any]:
    """(sequences, numbers of those for training, numbers of those for validation), by `seed`.

    One document (or a few long ones) cannot be divided by documents: its last part is cut off for the validation.
    """
    count = len(sequences)
    if format_ == "text" and count * percentage < 200:
        total = int(sequences.starts[-1])
        cut = total - max(1, total * percentage // 100)
        starts = np.unique(np.append(sequences.starts, cut))
        sequences = Sequences(sequences.tokens, sequences.trained, starts)
        border = int(np.searchsorted(starts, cut))
        return sequences, np.arange(border), np.arange(border, len(sequences))
    held_out = max(1, count * percentage // 100)
    if held_out >= count:
        raise DataError(
            f"{count} example{'s' if count > 1 else ''} cannot be split: give a validation file, or more data"
        )
    order = np.random.RandomState(seed).permutation(count)
    return sequences, np.sort(order[held_out:]), np.sort(order[:held_out])


def prepare(
    train: Iterable[Row],
    validation: Iterable[Row] | None,
    tokenizer: Any,
    options: Options,
    readings: Sequence[Reading],
) -> Prepared:
    """Rows for training and validation, and the lines that say what became of the data.

    `readings`: those of the two channels, for the columns that they left out. Raises DataError.
    """
    encoder, apply = Encoder(tokenizer), template_of(tokenizer)
    lines: list[str] = []
    sequences, counts, ends = tokenise(train, encoder, apply, options)
    everything = np.arange(len(sequences))
    _check_counts("train", sequences, counts, options)
    eval_rows = None
    if validation is None and options.split_percentage:
        sequences, chosen, held_out = halves(sequences, counts.format, options.split_percentage, options.seed)
        train_rows = lay_out(sequences, counts, chosen, encoder, options)
        eval_rows = lay_out(sequences, counts, held_out, encoder, options)
        lines.append(f"validation: {options.split_percentage} % of the training data, chosen by seed {options.seed}")
    else:
        train_rows = lay_out(sequences, counts, everything, encoder, options)
    lines += _lines("train", train_rows, counts, readings[0], options)
    if validation is not None:
        other, other_counts, more = tokenise(validation, encoder, apply, options)
        _check_counts("validation", other, other_counts, options)
        ends |= more
        eval_rows = lay_out(other, other_counts, np.arange(len(other)), encoder, options)
        lines += _lines("validation", eval_rows, other_counts, readings[1], options)
    elif eval_rows is not None:
        lines.append(f"validation: {len(eval_rows)} rows, {eval_rows.filled:.0%} filled")
    lines += shown(train_rows, encoder)
    return Prepared(train_rows, eval_rows, (encoder.eos, *sorted(ends - {encoder.eos})), tuple(lines))


def template_of(tokenizer: Any) -> Any:
    """The chat template as a function from messages to text; None where the tokenizer has none."""
    source = getattr(tokenizer, "chat_template", None)
    if not source:
        return None

    def apply(messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    apply.source = json.dumps(source)  # type: ignore[attr-defined]
    return apply


def chosen_template(choice: str) -> str:
    """The text of a chat template: by name, by file, or as it is. Raises DataError for what is none of them."""
    if choice in TEMPLATES:
        return TEMPLATES[choice]
    if "{%" in choice or "{{" in choice:
        return choice
    try:
        text = Path(choice).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(TEMPLATES)
        raise DataError(
            f"chat_template {choice}: neither a name ({known}) nor a file that can be read ({error})"
        ) from None
    if "{%" not in text and "{{" not in text:
        raise DataError(f"chat_template {choice}: no Jinja template, it has no {{% %}} and no {{{{ }}}}")
    return text


def _check_counts(name: str, sequences: Sequences, counts: Counts, options: Options) -> None:
    """Raises DataError where nothing is left to train on."""
    size = options.block_size
    if counts.format == "text":
        total = int(sequences.starts[-1]) - len(sequences)  # the end of each text is not the user's
        if total <= 0:
            raise DataError(f"{name}: no text in {counts.examples} rows")
        if name == "train" and total < size:
            raise DataError(
                f"{name}: {total} tokens, one block needs {size}: add data, or set block_size {total} or less"
            )
    elif not counts.examples:
        raise DataError(f"{name}: no rows")
    elif not len(sequences) and counts.dropped:
        raise DataError(
            f"{name}: block_size {size}: no example fits ({counts.dropped} are longer, the shortest has "
            f"{counts.shortest_dropped} tokens): raise block_size, or set too_long truncate"
        )
    elif not len(sequences):
        raise DataError(f"{name}: none of {counts.examples} examples has anything to train on: is train_on right?")


def _lines(name: str, rows: Rows, counts: Counts, reading: Reading, options: Options) -> Iterator[str]:
    """What became of a channel's data."""
    lengths = rows.sequences.lengths
    what = "documents" if counts.format == "text" else "examples"
    low, high = (int(np.percentile(lengths, q)) for q in (50, 95))
    yield (
        f"{name}: {counts.examples} {what} of format {counts.format}, {int(lengths.sum())} tokens (median {low}, "
        f"95 % up to {high}, longest {int(lengths.max())}), {counts.truncated} truncated, {counts.dropped} dropped"
    )
    if reading.unused:
        yield f"{name}: columns that are not used: {', '.join(reading.unused)}"
    for count, why in ((counts.empty, "have no text"), (counts.unanswered, "have nothing to train on")):
        if count:
            yield f"warning: {name}: {count} of {counts.examples} {what} {why} and are left out"
    if counts.dropped > WARN_DROPPED * counts.examples:
        yield (
            f"warning: {name}: {counts.dropped} of {counts.examples} examples "
            f"({counts.dropped / counts.examples:.1%}) are longer than block_size {options.block_size} and left out: "
            "raise it, or set too_long truncate"
        )
    apart = " packed" if rows.apart else ""
    yield f"{name}: {len(rows)}{apart} rows of {rows.block_size} tokens, {rows.filled:.0%} of them not padding"
    if not rows.apart and counts.format != "text" and rows.filled < 0.5:
        fewer = len(packing.best_fit(rows.lengths.tolist(), rows.block_size))
        yield f"{name}: packing true would make it {fewer} rows instead of {len(rows)}"


def shown(rows: Rows, encoder: Encoder, width: int = 400) -> Iterator[str]:
    """The first row's first example as text, in stretches that the loss is and is not taken on."""
    row = rows[0]
    end = int(rows.length[0])
    labels = row["labels"][:end] != IGNORED
    labels[0] = labels[0] or bool(rows.sequences.trained[rows.first[0]])
    yield f"first example, {end} tokens:"
    borders = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), end]
    for start, stop in pairwise(borders):
        text = encoder.decode(row["input_ids"][start:stop])
        text = text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"
        yield f"  {'loss   ' if labels[start] else 'no loss'} {text!r}"


def outside(rows: Rows, vocabulary: int) -> str:
    """What is wrong with ids that the model has no embedding for; empty where nothing is."""
    tokens = rows.sequences.tokens
    highest = max(int(tokens.max()) if len(tokens) else 0, rows.pad)
    if highest < vocabulary:
        return ""
    return (
        f"the tokenizer makes id {highest}, the model has embeddings for {vocabulary} tokens: they do not belong "
        "together, or tokens were added without resizing the model"
    )
