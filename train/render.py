"""From a row to one text, and which of its characters the loss is taken on.

A whole example becomes one text and is tokenised once; what belongs to an answer is found by the characters' places.
Tokenised apart, an answer's first token would be another one with tokenizers that mark the beginning of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# The prompt of models trained without a chat template: https://github.com/tatsu-lab/stanford_alpaca#data-release
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
# Templates by name, for models that have none. https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
        "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
}

Span = tuple[int, int]
Apply = Callable[..., str]  # tokenizer.apply_chat_template


class RenderError(ValueError):
    """A row cannot be put into a text; the message is one line."""


@dataclass(frozen=True)
class Rendered:
    """A text and the characters that belong to answers, in order; `all_` where every character does."""

    text: str
    answers: tuple[Span, ...]
    all_: bool = False


def render(format_: str, values: Mapping[str, Any], apply: Apply | None, train_on: str) -> Rendered:
    """The text of a row of one of containers.rows' formats. `apply` is the model's chat template; None: it has none.

    Raises RenderError with the reason.
    """
    if format_ == "text":
        return Rendered(values["text"], (), all_=True)
    if format_ == "alpaca":
        made = _alpaca(values, apply)
    elif "messages" in values:
        made = _chat(values["messages"], values.get("tools"), apply, values.get("answers_from", 0))
    else:
        made = _joined(values["prompt"], values["completion"])
    return Rendered(made.text, made.answers, all_=train_on == "all")


def _joined(prompt: str, completion: str) -> Rendered:
    text = prompt + completion
    return Rendered(text, ((len(prompt), len(text)),))


def _alpaca(values: Mapping[str, Any], apply: Apply | None) -> Rendered:
    """With a chat template as a chat, since that is what the model knows; without as Alpaca itself was trained."""
    if apply is None:
        if values.get("history") or values.get("system"):
            raise RenderError("history and system need a chat template, and the model has none: set chat_template")
        prompt = ALPACA_INPUT if values.get("input") else ALPACA
        return _joined(prompt.format_map({"input": "", **values}), values["output"])
    question = values["instruction"] + (f"\n{values['input']}" if values.get("input") else "")
    messages = [{"role": "system", "content": values["system"]}] if values.get("system") else []
    for asked, answered in [*values.get("history", []), [question, values["output"]]]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return _chat(messages, None, apply, len(messages) - 1)


def _chat(messages: list[dict[str, Any]], tools: Any, apply: Apply | None, answers_from: int) -> Rendered:
    """The template's text. Answers are the assistant's turns from message `answers_from` on, but those of weight 0.

    A turn begins where the template, given the messages before it, asks the model to speak, and ends where the text
    with it ends. Where a template writes earlier turns otherwise than the last one, their own words are looked for.
    """
    if apply is None:
        raise RenderError(
            "a chat needs a chat template, and the model has none: set chat_template, for example chatml"
        )
    if any(m.get("tool_calls") for m in messages) and "tool_calls" not in str(getattr(apply, "source", "tool_calls")):
        raise RenderError("the chat template leaves tool_calls out: they would not be trained on")
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    messages = messages[: last + 1]  # what comes after it is never answered
    plain = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
    whole = _applied(apply, plain, tools, False)
    end_of_turn = _after(whole, plain[-1]["content"])
    answers, at = [], 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start, end = _turn(whole, plain, i, tools, apply, at, end_of_turn)
        at = end
        if i >= answers_from and message.get("weight", 1):
            answers.append((start, end))
    return Rendered(whole, tuple(answers))


def _applied(apply: Apply, messages: list[dict[str, Any]], tools: Any, ask: bool) -> str:
    try:
        return apply(messages, tools=tools, add_generation_prompt=ask)
    except Exception as error:  # noqa: BLE001 (a template is a program: it raises what it likes)
        raise RenderError(f"the chat template refuses it ({str(error) or type(error).__name__})") from None


def _after(whole: str, content: str) -> str:
    """What the template writes after the last turn's words: its mark for the end of a turn, without blanks."""
    place = whole.rfind(content.strip())
    return whole[place + len(content.strip()) :].strip() if content.strip() and place >= 0 else ""


def _turn(
    whole: str, messages: list[dict[str, Any]], i: int, tools: Any, apply: Apply, at: int, end_of_turn: str
) -> Span:
    content = messages[i]["content"].strip()
    if i:
        asked = _applied(apply, messages[:i], tools, True)
        said = whole if i == len(messages) - 1 else _applied(apply, messages[: i + 1], tools, False)
        if whole.startswith(asked) and whole.startswith(said.rstrip()) and len(said) > len(asked) >= at:
            return len(asked), len(said.rstrip())
    place = whole.find(content, at)
    if place < 0 or not content:
        raise RenderError(f"message {i + 1} of the assistant is not to be found in the chat template's text")
    end = place + len(content)
    return place, end + (len(end_of_turn) if whole.startswith(end_of_turn, end) else 0)
