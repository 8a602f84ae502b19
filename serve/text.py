"""Tokens into text while they come: half characters, stop strings over the border of two tokens. No model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

Decode = Callable[[Sequence[int]], str]
HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class Text:
    """One answer's text. `push` a token, then `take` what may be shown; text that was taken never changes.

    `stopped` becomes true when a stop string has come; the text then ends before it.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode, self._stops = decode, tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._tokens: list[int] = []
        # The text says _tokens[:_read]; what comes next is decoded after _tokens[_context:_read], since the first
        # token of a piece may lose its space.
        self._context = self._read = 0
        self._taken = 0

    def push(self, token: int) -> None:
        """Add a token to the text; half a character waits for its rest."""
        self._tokens.append(token)
        self._grow(whole=False)

    def finish(self) -> None:
        """No more tokens come: half a character is written as such."""
        if not self.stopped:
            self._grow(whole=True)

    def take(self, last: bool = False) -> str:
        """What can be shown now and was not yet; with `last` everything that is left."""
        end = len(self.text) if last or self.stopped else settled(self.text, self._stops, self._taken)
        piece = self.text[self._taken : end]
        self._taken = max(self._taken, end)
        return piece

    def _grow(self, whole: bool) -> None:
        # Only the last few tokens are decoded again: decoding 1,024 of them takes milliseconds, in every step.
        old = self._decode(tuple(self._tokens[self._context : self._read]))
        new = self._decode(tuple(self._tokens[self._context :]))
        if new.endswith(HALF) and not whole:
            return
        before = len(self.text)
        self.text += new[len(old) :]
        self._context, self._read = self._read, len(self._tokens)
        ends = [i for i in (self.text.find(s, max(0, before - self._longest + 1)) for s in self._stops) if i >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True


def settled(text: str, stops: Sequence[str], start: int = 0) -> int:
    """How much of an unfinished text may be shown: not the start of a stop string, not half a character.

    Nothing before `start` is taken back.
    """
    end = len(text.rstrip(HALF))
    held = max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n], start, end)), default=0)
    while end - held > start and text[end - held - 1] == HALF:
        end -= 1
    return max(start, end - held)


def decoder(tokenizer: Any) -> Decode:
    """Tokens as the model wrote them, special ones left out.

    Without cleaning up spaces, which would change text that a stream has already shown. Past transformers' own method
    where there is a fast tokenizer behind it: that costs 60 µs a call, several calls a step and slot.
    """
    fast = getattr(tokenizer, "_tokenizer", None)

    def plain(tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        if fast is not None:
            return str(fast.decode(list(tokens), skip_special_tokens=True))
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # Half of all calls ask for the one token that was new in the call before.
    return lru_cache(maxsize=4096)(plain)
