"""Tokenising and packing against run_clm's own way, and what is left of padding.

    make setup && .venv/bin/python benchmarks/data.py [--mb 12] [--memory] [--json]

The peer is what transformers' run_clm.py does: datasets reads the file, `map` tokenises it in batches, and a second
`map` joins and cuts it into blocks (group_texts). Ours is train/data.py. Both read the same JSON lines and end with
rows of 512; the peer drops the tail of every thousand rows, ours none. Arms alternate, each in a process of its own,
and the median counts; processor time of others while an arm ran is printed beside it. The text is the standard
library's own (pydoc's topics), over and over, which both tokenisers cache alike.

Padding is counted on two sets of whole examples: the demo's headlines, and long answers made of the same topics.
--memory: the highest resident memory of ours for 1 GB of input, less that for 1 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness import assets  # noqa: E402
from harness.assets import datasets, models  # noqa: E402
from harness.paths import CACHE, python_of  # noqa: E402

BLOCK = 512
COMMON = """
import json, resource, sys, time
model, file, block = sys.argv[1], sys.argv[2], int(sys.argv[3])
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(model)
"""
OURS = """
from pathlib import Path
from containers.rows import Reading
from train.data import Options, from_files, prepare
packing = len(sys.argv) > 4
started = time.monotonic()
reading = Reading()
options = Options(block, packing=packing)
data = prepare(from_files([Path(file)], reading, None), None, tokenizer, options, [reading, reading])
rows, tokens, filled, lines = len(data.train), int(data.train.lengths.sum()), data.train.filled, data.lines
"""
PEER = """
from datasets import load_dataset
import tempfile
started = time.monotonic()
data = load_dataset("json", data_files=file, split="train", cache_dir=tempfile.mkdtemp())
data = data.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=data.column_names)
def group(rows):
    joined = {key: [token for row in values for token in row] for key, values in rows.items()}
    total = len(joined["input_ids"]) // block * block
    cut = {key: [values[i : i + block] for i in range(0, total, block)] for key, values in joined.items()}
    return {**cut, "labels": [list(row) for row in cut["input_ids"]]}
data = data.map(group, batched=True)
rows, tokens, filled, lines = len(data), len(data) * block, 1.0, []
"""
REPORT = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": time.monotonic() - started, "rows": rows, "tokens": tokens, "filled": filled, "MB": peak,
                  "dropped": [line for line in lines if "dropped" in line]}))
"""


def texts() -> list[str]:
    from pydoc_data.topics import topics

    return list(topics.values())


def write_text(path: Path, megabytes: float) -> Path:
    lines = [json.dumps({"text": text}) + "\n" for text in texts()]
    size = 0
    with path.open("w") as handle:
        while size < megabytes * 1e6:
            for line in lines:
                size += handle.write(line)
                if size >= megabytes * 1e6:
                    break
    return path


def write_long(path: Path) -> Path:
    """Answers of one to eight paragraphs of a topic."""
    chance = random.Random(0)
    rows = []
    for text in texts():
        paragraphs = [p for p in text.split("\n\n") if 0 < len(p) < 1000]
        while paragraphs:
            count = chance.randint(1, 8)
            rows.append({"prompt": "Explain:\n", "completion": "\n\n".join(paragraphs[:count])[:1400]})
            paragraphs = paragraphs[count:]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def busy() -> float:
    """Processor seconds that were used on this machine so far."""
    return sum(float(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:4]) / os.sysconf(
        "SC_CLK_TCK"
    )


def run(program: str, model: Path, file: Path, *more: str) -> dict[str, float]:
    before, started = busy(), time.monotonic()
    own = os.times()
    done = subprocess.run(
        [
            str(python_of("train")),
            "-W",
            "ignore",
            "-c",
            COMMON + program + REPORT,
            str(model),
            str(file),
            str(BLOCK),
            *more,
        ],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    after = os.times()
    ours = after.children_user + after.children_system - own.children_user - own.children_system
    foreign = (busy() - before - ours) / (time.monotonic() - started)
    return {**json.loads(done.stdout.splitlines()[-1]), "foreign": max(0.0, foreign)}


def headlines(folder: Path) -> Path:
    labels = {name: name for name in assets.DATA_SETS["sarcasm"].classes}
    found = datasets.examples(assets.DATA_SETS["sarcasm"], CACHE, print)
    sizes = {"train": 20_000, "validation": 1, "test": 2}
    split = datasets.split(found, sizes, 0)
    return datasets.write_channels(split, "Headline: {text}\nSarcastic?", labels, folder)["train"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=float, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = models.directory(assets.MODELS["smollm2-135m-instruct"], CACHE, print)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_text(folder / "text.jsonl", given.mb)
        arms: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(given.rounds):
            for arm, program in (("ours", OURS), ("peer", PEER)):
                seen = run(program, model, file)
                arms[arm].append(seen["seconds"])
                print(
                    f"{arm}: {seen['seconds']:.2f} s, {seen['tokens']} tokens in {seen['rows']} rows, "
                    f"{seen['MB']:.0f} MB, others {seen['foreign']:.1f} cores"
                )
        result["ratio_tokenise"] = round(statistics.median(arms["peer"]) / statistics.median(arms["ours"]), 2)
        for what, made in (("headlines", headlines(folder)), ("long", write_long(folder / "long.jsonl"))):
            seen = run(OURS, model, made, "packed")
            assert "0 dropped" in seen["dropped"][0], seen
            result[f"padding_{what}"] = round(1 - seen["filled"], 4)
        if given.memory:
            low, high = (run(OURS, model, write_text(folder / "m.jsonl", mb))["MB"] for mb in (1, 1000))
            result["memory_growth_MB"] = round(high - low)
    if given.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
