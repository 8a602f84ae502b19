"""serve/text.py: what a stream shows, whatever the tokens are cut like, and where stop strings end it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings, strategies as st

from serve.text import HALF, Text, settled

# Tokens are pieces of UTF-8: characters are cut in the middle, as byte-level vocabularies do.
PIECES = st.lists(st.sampled_from([b"a", b"b", b"ab", b" ", "é".encode()[:1], "é".encode()[1:], "😀".encode()[:2],
                                   "😀".encode()[2:], "é".encode(), b"ba b"]), max_size=25)  # fmt: skip
STOPS = st.lists(st.text("ab é😀", min_size=1, max_size=4), max_size=3)


def decoding(pieces: list[bytes]) -> tuple[list[int], object]:
    def decode(tokens: Sequence[int]) -> str:
        return b"".join(pieces[t] for t in tokens).decode("utf-8", "replace")

    return list(range(len(pieces))), decode


def cut(text: str, stops: list[str]) -> str:
    return text[: min((i for i in (text.find(s) for s in stops) if i >= 0), default=len(text))]


@settings(max_examples=400)
@given(PIECES, STOPS)
def test_the_pieces_of_a_stream_are_the_text_up_to_the_first_stop(pieces: list[bytes], stops: list[str]) -> None:
    tokens, decode = decoding(pieces)
    text, shown = Text(decode, stops), ""  # type: ignore[arg-type]
    for token in tokens:
        text.push(token)
        shown += text.take()
        assert not any(stop in shown for stop in stops)
        if text.stopped:
            break
    text.finish()
    shown += text.take(last=True)
    whole = b"".join(pieces).decode("utf-8", "replace")
    assert shown == text.text
    assert shown == cut(whole, stops)
    assert text.stopped == any(stop in whole for stop in stops)


@given(
    st.text("ab" + HALF, max_size=20), st.lists(st.text("ab" + HALF, min_size=1, max_size=4), max_size=3), st.data()
)
def test_what_is_shown_is_never_taken_back(text: str, stops: list[str], data: st.DataObject) -> None:
    whole = cut(text, stops)
    begun = text[: data.draw(st.integers(0, len(text)))]
    if cut(begun, stops) == begun and not begun.endswith(HALF):
        assert whole.startswith(begun[: settled(begun, stops)])
    assert settled(begun + HALF, stops) == settled(begun, stops)  # half a character is held back
    assert settled(begun, stops, start=len(begun)) == len(begun)


def test_the_start_of_a_stop_string_waits() -> None:
    assert settled("half a st", ["stop"]) == len("half a ")
    assert settled("half a step", ["stop"]) == len("half a step")
