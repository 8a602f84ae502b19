"""KILL of the trainer at ten steps of each of four kinds of training, resumed each time.

`make test-chaos`. tests/chain/kill_rounds.py does it; the test of tests/chain has two kinds with five kills each.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.chain.conftest import in_train_environment, write_tiny_run


def main() -> None:
    seed = str(random.randrange(1000))
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        in_train_environment("-m", "tests.chain.make_tiny_model", str(folder / "made"))
        write_tiny_run(folder / "made", folder)
        words = ["tests.chain.kill_rounds", str(folder / "made"), str(folder / "train.jsonl"), seed]
        print(in_train_environment("-m", *words, timeout=3600), end="", flush=True)


if __name__ == "__main__":
    main()
