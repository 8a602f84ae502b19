"""Record what the real transformers-neuronx accepts, refuses and sends to the device.

    python -m tests.tnx.record_table SOURCE [--commit HASH]

SOURCE is a checkout of github.com/aws-neuron/transformers-neuronx, branch release-2.20. Run it with the serving
environment's Python (torch and transformers at the image's pins); it writes tests/tnx/table.json: facts, no code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import warnings
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "table.json"
FILES = (
    "version.py",
    "base.py",
    "bucket.py",
    "config.py",
    "decoder.py",
    "hlo.py",
    "layers/attention.py",
    "layers/attention_utils.py",
    "layers/transformer.py",
    "llama/config.py",
    "llama/hlo.py",
    "llama/model.py",
    "llama/modules.py",
    "modeling_auto.py",
    "module.py",
)


def commit_of(source: Path) -> str:
    """HEAD of the checkout; empty for an export without history."""
    done = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def record(source: Path, commit: str) -> dict[str, object]:
    import torch
    import transformers

    from tests.tnx import calls, real, tiny
    from tests.tnx.device import Echo

    package = source / "src" / "transformers_neuronx"
    hashes = {f: hashlib.sha256((package / f).read_bytes()).hexdigest() for f in FILES}
    tnx = real.install(source, lambda model: Echo(model.batch_sizes[0], max(model.token_buckets)))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        tiny.write(model)
        found = calls.outcomes(tnx, model, Path(folder))
    return {
        "source": {
            "repository": "https://github.com/aws-neuron/transformers-neuronx",
            "branch": "release-2.20",
            "commit": commit,
            "version": tnx.__version__,
            "sha256": hashes,
            "recorded with": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
        "signatures": calls.signatures(tnx),
        "outcomes": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--commit", default="", help="where SOURCE is an export without .git")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    table = record(given.source, given.commit or commit_of(given.source))
    if not table["source"]["commit"]:  # type: ignore[index]
        parser.error("SOURCE has no git history: name its --commit")
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {TABLE.name}: {len(TABLE.read_bytes())} bytes")


if __name__ == "__main__":
    main()
