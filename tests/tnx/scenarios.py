"""What engine `neuron` answers in every situation the tests ask about, as JSON: `python -m tests.tnx.scenarios DIR`.

Runs in the serving environment, on the double, or on the real host code where TNX_SOURCE names its checkout.
DIR is an empty directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from containers.artifact import ArtifactError
from serve.engines import cpu
from serve.generator import Generator, Job
from serve.options import ServeOptions
from serve.protocols.errors import RequestError
from serve.request import Answer, Parameters, Request
from serve.text import Text, decoder
from tests.tnx import double, real, tiny
from tests.tnx.device import Kernel

OPTIONS = ServeOptions(n_positions=160, max_batch_size=4, dtype="fp32")
ASK = Parameters(max_new_tokens=20)
KEYWORDS: list[dict[str, Any]] = []


def install() -> Any:
    source = os.environ.get("TNX_SOURCE")
    tnx = real.install(Path(source)) if source else double.install()
    auto = tnx.NeuronAutoModelForCausalLM
    original = auto.from_pretrained

    def from_pretrained(*words: Any, **given: Any) -> Any:
        KEYWORDS.append({k: v for k, v in given.items() if k != "neuron_config"})
        return original(*words, **given)

    auto.from_pretrained = from_pretrained
    return tnx


def prompts(tokenizer: Any) -> dict[str, str]:
    """Texts by the number of their tokens: one, few, and around the bucket of 128."""

    def sized(n: int, shift: int) -> str:
        text = ""
        while len(tokenizer(text)["input_ids"]) < n:
            text += "qzjvk"[(len(text) * shift) % 5]  # letters that the tokenizer joins with nothing
        assert len(tokenizer(text)["input_ids"]) == n, text
        return text

    return {
        "one": "q",
        "few": "red warm",
        "more": "Is it blue, or green?",
        "127": sized(127, 1),
        "128": sized(128, 2),
        "129": sized(129, 3),
    }


class Client:
    """An engine with a generator: what a test asks, answered to the end or step by step."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.generator = engine, Generator(engine)
        self.tokenizer = engine.tokenizer

    def submit(self, texts: list[str], parameters: Parameters) -> list[Job]:
        return self.generator.submit(tuple(Request(t, parameters) for t in texts), float("inf"))

    def step(self) -> None:
        self.generator.step()

    def cancel(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.generator.cancel(job)

    def finish(self, jobs: list[Job]) -> list[Answer]:
        while not all(job.done for job in jobs):
            self.step()
        for job in jobs:
            if job.error:
                raise RuntimeError(job.error)
        return [job.answer for job in jobs if job.answer is not None]

    def generate(self, texts: list[str], parameters: Parameters) -> list[Answer]:
        return self.finish(self.submit(texts, parameters))

    def stream(self, text: str, parameters: Parameters) -> list[Any]:
        """Pieces of text, then the answer's row."""
        (job,) = self.submit([text], parameters)
        (answer,) = self.finish([job])
        return [*(piece.text for piece in job.pieces), row(answer)]


def row(g: Answer) -> list[Any]:
    return [g.text, g.finish_reason, g.prompt_tokens, g.generated_tokens]


def refusal(call: Callable[[], Any]) -> list[Any]:
    try:
        call()
    except RequestError as error:
        return [error.status, list(error.problems)]
    except Exception as error:  # noqa: BLE001
        return [type(error).__name__, str(error)]
    return []


@contextlib.contextmanager
def compiles() -> Iterator[list[int]]:
    """[how many graphs were compiled inside]."""
    before, found = Kernel.compiled, [0]
    yield found
    found[0] = Kernel.compiled - before


def tree(folder: Path) -> dict[str, list[Any]]:
    """Every file below `folder`: digest and time."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {
        str(p.relative_to(folder)): [hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns] for p in files
    }


def company(engine: Client, reference: Client, texts: dict[str, str]) -> dict[str, Any]:
    """The same prompts alone, together, in every slot, and joining others."""
    found: dict[str, Any] = {
        "cpu": {k: row(reference.generate([t], ASK)[0]) for k, t in texts.items()},
        "alone": {k: row(engine.generate([t], ASK)[0]) for k, t in texts.items()},
    }
    names = list(texts)
    found["together"] = {}
    for group in (names[:4], names[2:], list(reversed(names))[:3], ["few"] * 4):
        answers = engine.generate([texts[n] for n in group], ASK)
        found["together"]["+".join(group)] = [[n, row(a)] for n, a in zip(group, answers, strict=True)]
    found["slots"], found["joined"] = [], []
    for slot in range(4):
        others = engine.submit([texts["more"]] * slot, ASK) if slot else []
        for _ in others:
            engine.step()
        (job,) = engine.submit([texts["few"]], ASK)
        seen = set()
        while not job.done:
            engine.step()
            seen.add(job.sequence.slot)
        engine.cancel(others)
        assert job.answer is not None
        found["slots"].append([sorted(s for s in seen if s is not None), row(job.answer)])
    for second in names:
        # `second` arrives when `more` has some tokens, then `few`, then `128`; `129` comes and leaves half-way.
        jobs = [("more", *engine.submit([texts["more"]], ASK))]
        for name, wait in ((second, 3), ("few", 4), ("128", 5)):
            for _ in range(wait):
                engine.step()
            jobs.append((name, *engine.submit([texts[name]], ASK)))
        leaver = engine.submit([texts["129"]], ASK)
        engine.step()
        engine.cancel(leaver)
        answers = engine.finish([j for _, j in jobs])
        found["joined"] += [[n, row(a)] for (n, _), a in zip(jobs, answers, strict=True)]
    return found


def limits(engine: Client, reference: Client, texts: dict[str, str]) -> dict[str, Any]:
    full = replace(ASK, max_new_tokens=32)
    return {
        "to the last position": [row(e.generate([texts["128"]], full)[0]) for e in (reference, engine)],
        "one token more": [refusal(lambda e=e: e.generate(["q", texts["129"]], full)) for e in (reference, engine)],
        "prompt log probabilities": [
            refusal(lambda e=e: e.generate(["q"], replace(ASK, prompt_logprobs=True))) for e in (reference, engine)
        ],
        "more prompts than slots": [row(a) for a in engine.generate([texts["few"]] * 6, ASK)],
        "after refusals": row(engine.generate([texts["few"]], ASK)[0]),
    }


def stops(engine: Client, reference: Client, texts: dict[str, str]) -> dict[str, Any]:
    """A stop string over the border of two tokens; the end token; pieces of a stream."""
    text = texts["few"]
    (job,) = engine.submit([text], ASK)
    (answer,) = engine.finish([job])
    kept = [t for t in job.sequence.generated if t not in engine.engine.ends]
    pieces = [engine.tokenizer.decode([t]) for t in kept]
    i = next(
        i for i in range(4, len(pieces) - 1)
        if "\ufffd" not in pieces[i] + pieces[i + 1] and answer.text.count(pieces[i][-1] + pieces[i + 1][0]) == 1
    )  # fmt: skip
    border = pieces[i][-1] + pieces[i + 1][0]
    asked = replace(ASK, stop=("never there", border))
    found = {
        "border": border,
        "whole": answer.text,
        "stopped": [row(e.generate([text], asked)[0]) for e in (reference, engine)],
        "streamed": engine.stream(text, asked),
        "plain stream": [engine.stream(t, ASK) for t in texts.values()],
        "ends": sorted(engine.engine.ends),
    }
    before = engine.engine.ends
    reference.engine.ends = engine.engine.ends = frozenset([kept[6]])
    found["end token"] = [row(e.generate([text], ASK)[0]) for e in (reference, engine)]
    reference.engine.ends = engine.engine.ends = before
    return found


def seeds(engine: Client, reference: Client, texts: dict[str, str]) -> dict[str, Any]:
    def ask(seed: int | None, *names: str, who: Client = engine, **more: Any) -> list[str]:
        drawn = replace(ASK, do_sample=True, temperature=3.0, top_k=40, top_p=0.95, seed=seed, **more)
        return [a.text for a in who.generate([texts[n] for n in names], drawn)]

    return {
        "again": [ask(7, "few"), ask(7, "few")],
        "in company": ask(7, "more", "127", "few"),
        "on engine cpu": ask(7, "few", who=reference),
        "penalties": [
            ask(7, "few", who=e, repetition_penalty=1.5, presence_penalty=1.0) for e in (reference, engine)
        ],
        "negative": ask(-7, "few"),
        "others": [ask(seed, "few")[0] for seed in range(6)],
        "none": [ask(None, "few")[0] for _ in range(6)],
    }


def decoding(byte_level: Any) -> dict[str, Any]:
    """Text that grows token by token, and all tokens decoded at once: bytes, and words that carry their space."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<unk>", "</s>", *(f"\u2581{c}" for c in "abcdefgh"), *"ijklmnop"])}
    spaced = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    spaced.decoder = decoders.Metaspace()
    found = {}
    for name, tokenizer in {
        "bytes": byte_level,
        "words": PreTrainedTokenizerFast(tokenizer_object=spaced, unk_token="<unk>", eos_token="</s>"),
    }.items():
        chance = random.Random(0)
        different = []
        for size in range(1, 120):
            tokens = [chance.randrange(2, len(tokenizer)) for _ in range(size)]
            text = Text(decoder(tokenizer))
            for token in tokens:
                text.push(token)
            text.finish()
            wanted = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if text.text != wanted:
                different.append(tokens)
        found[name] = len(different)
    return found


SPACED = "is it warm , or cold ? don 't say ."


def spaces(tokenizer: Any) -> dict[str, Any]:
    """What is shown where a tokenizer asks for spaces to be cleaned up."""
    before, tokenizer.clean_up_tokenization_spaces = tokenizer.clean_up_tokenization_spaces, True
    text, shown = Text(decoder(tokenizer)), ""
    tokens = tokenizer(SPACED)["input_ids"]
    for token in tokens:
        text.push(token)
        shown += text.take()
    text.finish()
    found = {"cleaned": tokenizer.decode(tokens), "streamed": shown + text.take(last=True)}
    tokenizer.clean_up_tokenization_spaces = before
    return found


def failures(engine: Client, texts: dict[str, str]) -> dict[str, Any]:
    """A reader who leaves, a device that fails: slots must be free again."""
    found: dict[str, Any] = {}
    for _ in range(6):
        jobs = engine.submit([texts["few"]], ASK)
        engine.step()
        engine.cancel(jobs)
    found["still running"] = [engine.generator.scheduler.step() is not None]
    found["after readers left"] = row(engine.generate([texts["few"]], ASK)[0])
    forward = engine.engine.model.forward

    def broken(**_: Any) -> Any:
        raise RuntimeError("nrt error")

    engine.engine.model.forward = broken
    found["broken"] = [refusal(lambda: engine.generate([texts["few"]] * 4, ASK)) for _ in range(2)]
    engine.engine.model.forward = forward
    found["still running"].append(engine.generator.scheduler.step() is not None)
    found["after failures"] = [row(a) for a in engine.generate([texts["few"]] * 4, ASK)]
    return found


def artifacts(tnx: Any, model: Path, work: Path, texts: dict[str, str]) -> dict[str, Any]:
    """Unprepared, prepared, prepared for something else, split; nothing is written to the model directory."""
    from transformers import AutoModelForCausalLM

    from serve import prepare
    from serve.engines import neuron

    found: dict[str, Any] = {}

    def loaded(folder: Path, options: ServeOptions = OPTIONS) -> Any:
        with compiles() as count:
            answer = row(Client(neuron.load(folder, options)).generate([texts["few"]], ASK)[0])
        return [count[0], answer]

    cache = model / "neuron-compile-cache" / "neuronxcc-2.15" / "MODULE_1"
    cache.mkdir(parents=True)
    (cache / "model.neff").write_text("shipped")
    (cache / "model.lock").write_text("")
    before = tree(model)
    os.environ.pop("NEURON_COMPILE_CACHE_URL", None)
    found["unprepared"] = loaded(model)
    moved = Path(os.environ["NEURON_COMPILE_CACHE_URL"])
    found["cache"] = [
        model in moved.parents,
        sorted(str(p.relative_to(moved)) for p in moved.rglob("*") if p.is_file()),
    ]
    with compiles() as count:
        place = prepare.prepare(model, work / "prepared", OPTIONS)
    found["prepare"] = [count[0], sorted(p.suffix for p in place.iterdir())]
    found["model directory untouched"] = tree(model) == before
    with compiles() as count:
        prepare.prepare(model, work / "prepared", OPTIONS)
    found["prepare again"] = count[0]
    prepared = tree(work / "prepared")
    found["prepared"] = loaded(work / "prepared")
    found["other options"] = refusal(lambda: neuron.load(work / "prepared", replace(OPTIONS, n_positions=128)))
    found["prepared untouched"] = tree(work / "prepared") == prepared
    (place / "compile_key.json").unlink()
    found["without its key"] = loaded(work / "prepared")[0]
    with compiles() as count:
        prepare.prepare(work / "prepared", work / "prepared", replace(OPTIONS, n_positions=128))
    found["prepare anew, in place"] = [count[0], loaded(work / "prepared", replace(OPTIONS, n_positions=128))[0]]
    split = work / "split"
    tnx.module.save_pretrained_split(AutoModelForCausalLM.from_pretrained(model), str(split))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (split / name).write_bytes((model / name).read_bytes())
    prepare.check_model_directory(split)
    found["split"] = loaded(split)
    found["no model"] = refusal(lambda: prepare.prepare(work, work / "x", OPTIONS))
    assert issubclass(ArtifactError, ValueError)
    found["dtypes"] = {}
    for dtype in ("bf16", "fp16", "fp32"):
        neuron.build(model, replace(OPTIONS, dtype=dtype, tp_degree=2))
        found["dtypes"][dtype] = KEYWORDS[-1]
    neuron.build(model, replace(OPTIONS, max_batch_size=1))
    found["one prompt at a time"] = KEYWORDS[-1]["batch_size"]
    for place, name in ((model / "x", "inside"), (work / "y", "outside")):
        os.environ["NEURON_COMPILE_CACHE_URL"] = str(place)
        neuron.move_cache(model, os.environ)
        found[f"cache set {name}"] = os.environ["NEURON_COMPILE_CACHE_URL"] == str(place)
    os.environ["NEURON_COMPILE_CACHE_URL"] = "s3://bucket/cache"
    neuron.move_cache(model, os.environ)
    found["cache on s3"] = os.environ["NEURON_COMPILE_CACHE_URL"]
    return found


def main(work: Path) -> None:
    os.environ["TMPDIR"] = str(work)
    tnx = install()
    from serve.engines import neuron

    model = work / "model"
    tiny.write(model)
    reference = Client(cpu.load(model, OPTIONS))
    engine = Client(neuron.load(model, OPTIONS))
    texts = prompts(engine.tokenizer)
    found = {
        "company": company(engine, reference, texts),
        "limits": limits(engine, reference, texts),
        "stops": stops(engine, reference, texts),
        "seeds": seeds(engine, reference, texts),
        "decoding": decoding(engine.tokenizer),
        "spaces": spaces(reference.tokenizer),
        "failures": failures(engine, texts),
        "artifacts": artifacts(tnx, model, work, texts),
    }
    (work / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
