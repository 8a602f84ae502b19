"""A loaded engine as a rolling batch: what the protocols need of the model, the warm-up, the first numbers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from containers.health import FOLDER_ENV
from serve.engines import Engine
from serve.generator import Generator, longest_token
from serve.metrics import Metrics
from serve.options import ServeOptions
from serve.protocols import Context, parse
from serve.request import Parameters, Request
from serve.rolling import Deadlines, RollingBatch

WARM_UP_TOKENS = (
    4  # a prompt's step and a few of its answer: buffers are made, and the scheduler learns what they cost
)


def start(engine: Engine, options: ServeOptions, prometheus: bool = False) -> tuple[RollingBatch, float]:
    """The batch, and the seconds of the slowest step of the warm-up."""
    generator = Generator(engine)
    slowest = warm_up(generator)
    context = context_of(engine, options)
    folder = Path(os.environ.get(FOLDER_ENV) or tempfile.gettempdir())
    metrics = Metrics(prometheus=folder / f"metrics-{os.getpid()}.prom" if prometheus else None)
    metrics.publish()
    return (
        RollingBatch(
            generator,
            lambda body, content_type, accept: parse(body, content_type, context, accept),
            Deadlines(options.answer_timeout, options.stream_timeout),
            metrics,
        ),
        slowest,
    )


def warm_up(generator: Generator) -> float:
    """Answer as many made-up prompts as there are slots; the seconds of the slowest step but the first."""
    shapes = generator.engine.shapes
    size = max(
        1, min(shapes.n_positions - WARM_UP_TOKENS, (shapes.chunk or shapes.context_buckets[0]) // shapes.slots)
    )
    p = Parameters(max_new_tokens=min(WARM_UP_TOKENS, shapes.n_positions - size), ignore_eos=True)
    token = min(len(generator.engine.tokenizer) - 1, 7)
    seconds = []
    generator.submit(tuple(Request("", p, token_ids=(token,) * size) for _ in range(shapes.slots)), float("inf"))
    while not generator.idle:
        begun = generator.clock()
        generator.step()
        seconds.append(generator.clock() - begun)
    return max(seconds[1:] or seconds)


def context_of(engine: Engine, options: ServeOptions) -> Context:
    """What parsing a request needs to know of the model."""
    tokenizer: Any = engine.tokenizer

    def template(messages: Sequence[Mapping[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    return Context(
        n_positions=options.n_positions,
        max_sequences=engine.shapes.slots,
        vocabulary=len(tokenizer),
        tgi_compat=options.tgi_compat,
        chat_template=template if tokenizer.chat_template else None,
        decode=lambda tokens: str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)),
        prompt_logprobs="" if engine.prompt_logprobs else "this engine has no graph for log probabilities of prompts",
        longest_token=longest_token(tokenizer),
    )


@contextmanager
def nothing() -> Iterator[None]:
    """A block that nobody watches."""
    yield
