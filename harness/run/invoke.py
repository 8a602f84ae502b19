"""What is asked of an endpoint and what it answers: LMI's schema, whatever the platform."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import EndpointFailed, InvalidInput, Problem


def request(prompts: list[str] | str, **parameters: Any) -> dict[str, Any]:
    """The body of an invocation."""
    return {"inputs": prompts, "parameters": parameters} if parameters else {"inputs": prompts}


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: of a .jsonl each row's `prompt`, of another each line.

    Raises InvalidInput naming file, line and reason for everything that is not a string.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    prompts, problems = [], []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
            prompt = json.loads(text)["prompt"] if path.suffix == ".jsonl" else text
            if not isinstance(prompt, str) or "\0" in prompt:
                raise TypeError("prompt must be a string")
            prompts.append(prompt)
        except UnicodeDecodeError as error:
            problems.append(Problem(f"{path} line {number}: not UTF-8 ({error.reason} at byte {error.start})"))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            problems.append(Problem(f"{path} line {number}: {reason}", hint='a row is {"prompt": "..."}'))
    if not prompts and not problems:
        problems.append(Problem(f"{path}: no prompts"))
    if problems:
        raise InvalidInput.of(problems)
    return prompts


def texts(answer: bytes) -> list[str]:
    """The generated texts of an answer, one per prompt. Raises EndpointFailed for anything else."""
    try:
        rows = json.loads(answer)
        return [str(row["generated_text"]) for row in (rows if isinstance(rows, list) else [rows])]
    except (ValueError, KeyError, TypeError):
        raise EndpointFailed("the endpoint's answer is not LMI's", answer[:200].decode(errors="replace")) from None


def chat_request(messages: Sequence[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
    """The body of a chat, answered greedily: OpenAI's schema, whose own default would be to sample."""
    return {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0}


def chat_text(answer: bytes) -> str:
    """The text of a chat's answer. Raises EndpointFailed for anything else."""
    try:
        return str(json.loads(answer)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, TypeError, IndexError):
        raise EndpointFailed("the endpoint's answer is no chat's", answer[:200].decode(errors="replace")) from None


def chat_pieces(chunks: Iterable[bytes]) -> Iterator[str]:
    """The text of a chat's event stream, piece by piece. Raises EndpointFailed for an error in its place."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        *events, buffer = buffer.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                field, _, value = line.partition(b":")
                if field == b"data" and value.strip() not in (b"", b"[DONE]"):
                    yield _chat_piece(value.strip())
    if buffer.strip():  # an error before the first event is no event
        yield _chat_piece(buffer.strip())


def _chat_piece(data: bytes) -> str:
    try:
        row = json.loads(data)
        if "error" in row:
            raise EndpointFailed("the endpoint failed", str(row["error"]))
        return "".join(choice.get("delta", {}).get("content") or "" for choice in row["choices"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EndpointFailed("the stream broke", data[:200].decode(errors="replace")) from None


def likelihood_request(prompts: list[str], words: list[str]) -> dict[str, Any]:
    """The body that asks for the prompts' own log probabilities, with each of `words` behind each prompt."""
    return request([p + word for p in prompts for word in words], max_new_tokens=1, decoder_input_details=True)


def likelihoods(answer: bytes, prompts: list[str], words: list[str]) -> list[list[float]]:
    """For each prompt the log probability of each word behind it.

    Of the tokens that the texts of one prompt do not begin with in common: where a word begins cannot be told by
    counting characters, since a token's text alone lacks its blank (SentencePiece), and a begin token has none in
    the prompt. Raises EndpointFailed for an answer of another form.
    """
    try:
        told = [[(t["id"], t.get("log_prob")) for t in row["details"]["prefill"]] for row in json.loads(answer)]
        if len(told) != len(prompts) * len(words) or not all(told):
            raise ValueError(len(told))
        texts = [told[i : i + len(words)] for i in range(0, len(told), len(words))]
        # Nothing predicts the first token, so that it has no log probability: a word there is a TypeError.
        return [[sum(float(value) for _, value in text[_common(of) :]) for text in of] for of in texts]
    except (ValueError, KeyError, TypeError):
        raise EndpointFailed("the answer has no log probabilities", answer[:200].decode(errors="replace")) from None


def _common(texts: list[list[tuple[int, float | None]]]) -> int:
    """How many tokens all begin with; each keeps one at least, or a word that begins another would be certain."""
    most = min(map(len, texts)) - 1
    return next((i for i in range(most) if len({text[i][0] for text in texts}) > 1), most)


def completion_request(prompts: list[str], completions: list[str]) -> dict[str, Any]:
    """The body that asks for the log probabilities of each prompt with its completion behind it, and alone."""
    texts = [text for p, c in zip(prompts, completions, strict=True) for text in (p + c, p)]
    return request(texts, max_new_tokens=1, decoder_input_details=True)


def completion_likelihoods(answer: bytes, count: int) -> list[tuple[float, int]]:
    """For each of `count` prompts the log probability of its completion, in nats, and its number of tokens.

    Of the tokens behind those that text and prompt begin with in common: where the two meet in one token, that token
    is the completion's. Raises EndpointFailed for an answer of another form.
    """
    try:
        told = [[(t["id"], t.get("log_prob")) for t in row["details"]["prefill"]] for row in json.loads(answer)]
        if len(told) != 2 * count:
            raise ValueError(len(told))
        found = []
        for text, prompt in zip(told[::2], told[1::2], strict=True):
            shared = next(
                (i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a[0] != b[0]), len(prompt)
            )
            own = text[min(max(shared, 1), len(text) - 1) :]
            found.append((sum(float(value) for _, value in own), len(own)))  # None is a TypeError
        return found
    except (ValueError, KeyError, TypeError):
        raise EndpointFailed("the answer has no log probabilities", answer[:200].decode(errors="replace")) from None


def pieces(chunks: Iterable[bytes]) -> Iterator[str]:
    """The text of a JSON-lines stream, piece by piece; chunk boundaries may be anywhere."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if line.strip():
                yield _piece(line)
    if buffer.strip():
        yield _piece(buffer)


def _piece(line: bytes) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        raise EndpointFailed("the stream broke", line[:200].decode(errors="replace")) from None
    if "error" in row:
        raise EndpointFailed("the endpoint failed in mid-stream", str(row["error"]))
    return str(row["token"]["text"])
