"""Tokens of texts: one beginning, one end, and which of them the loss is taken on; and where they are kept.

Tokens lie in unlinked temporary files, so that memory does not grow with the data.
"""

from __future__ import annotations

import mmap
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.packing import Sequences
from train.render import Rendered


class DataError(ValueError):
    """The data cannot be trained on; each problem one line with file, line number and reason."""


class Encoder:
    """A tokenizer as it is needed here: ids, with the characters' places or without; what begins and ends a text."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: transformers' PreTrainedTokenizerFast. Raises DataError for one that cannot be used."""
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token; answers would never end")
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{type(tokenizer).__name__} knows no places of characters, by which answers are told from prompts: "
                "save the tokenizer as tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()  # some tokenizer.json have a limit in them, which would cut texts silently
        self.backend.no_padding()
        self.eos: int = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.prefix = self._prefix()
        special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        self.special = special - {self.bos, getattr(tokenizer, "unk_token_id", None)}

    def _prefix(self) -> list[int]:
        """What the tokenizer itself puts before a text, in most cases the beginning-of-sequence token or nothing."""
        bare = self.backend.encode("a", add_special_tokens=False).ids
        whole = list(self.tokenizer("a")["input_ids"])
        return next((whole[:k] for k in range(len(whole)) if whole[k : k + len(bare)] == bare), [])

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids alone; twice as fast as with places."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def places(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids and the characters [from, to) of each."""
        return [(e.ids, e.offsets) for e in self.backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def begun(self, ids: list[int]) -> tuple[list[int], int]:
        """(what goes before the tokens, how many of them to leave out), so that a sequence begins once.

        A text or a template may have written the beginning already, or twice.
        """
        mark = self.prefix or ([self.bos] if self.bos is not None else [])
        skip = 0
        while mark and ids[skip : skip + len(mark)] == mark:
            skip += len(mark)
        return (mark if self.prefix or skip else []), skip

    def stop(self, ids: list[int], blank: Callable[[int], bool]) -> int:
        """How many tokens to keep, so that the end can be put after them once. `blank(i)`: is token i blank?

        Ends are left out with all blanks behind the first of them, and so are blanks behind the mark that ends a
        turn: many templates write a line break there, which no answer has to go on to.
        """
        run = len(ids)
        while run and (ids[run - 1] == self.eos or blank(run - 1)):
            run -= 1
        if self.eos in ids[run:]:
            return run + ids[run:].index(self.eos)
        return run if run and ids[run - 1] in self.special else len(ids)


def labelled(
    example: Rendered, ids: list[int], places: list[tuple[int, int]], encoder: Encoder
) -> tuple[list[int], Any]:
    """(the sequence with one beginning and one end, 1 for each token that the loss is taken on).

    A token belongs to an answer if one of its characters does. The end belongs to it if the answer reaches the end.
    """
    before, skip = encoder.begun(ids)
    stop = encoder.stop(ids, lambda i: not example.text[slice(*places[i])].strip())
    trained = np.zeros(len(ids), np.uint8)
    if example.all_:
        trained[:] = 1
    for start, end in example.answers if not example.all_ else ():
        first = bisect_right(places, start, key=lambda place: place[1])
        last = bisect_right(places, end - 1, key=lambda place: place[0])
        trained[first:last] = 1
    reached = example.all_ or bool(example.answers and example.answers[-1][1] >= len(example.text.rstrip()))
    kept = trained[skip:stop] if stop > skip else trained[:0]
    return [*before, *ids[skip:stop], encoder.eos], np.concatenate(
        [np.full(len(before), example.all_, np.uint8), kept, np.asarray([reached], np.uint8)]
    )


class Store:
    """Token sequences, written to temporary files as they come."""

    def __init__(self, vocabulary: int) -> None:
        self.dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
        self.tokens, self.trained = (tempfile.TemporaryFile(prefix="rows-") for _ in range(2))  # noqa: SIM115
        self.starts = [0]
        self.length = 0

    def write(self, ids: Sequence[int], trained: Any) -> None:
        """Go on with the sequence that is being written."""
        tokens = np.asarray(ids, dtype=self.dtype)
        self.tokens.write(tokens.tobytes())
        self.trained.write(np.broadcast_to(np.asarray(trained, dtype=np.uint8), tokens.shape).tobytes())
        self.length += len(tokens)

    def end(self) -> None:
        """The sequence is complete."""
        if self.length > self.starts[-1]:
            self.starts.append(self.length)

    def close(self) -> None:
        """Nothing more is written; what `sequences` returned stays."""
        self.tokens.close()
        self.trained.close()

    def sequences(self) -> Sequences:
        arrays = []
        for file, dtype in ((self.tokens, self.dtype), (self.trained, np.dtype(np.uint8))):
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.length else b""
            arrays.append(np.frombuffer(mapped, dtype=dtype))
        return Sequences(arrays[0], arrays[1], np.asarray(self.starts, dtype=np.int64))
