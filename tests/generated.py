"""Files made from code: `python -m tests.generated` writes them, `--check` fails when one is out of date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Runs in .venv-train: optimum-neuron 0.0.28's arguments import without Neuron hardware.
LIST_TRAIN_OPTIONS = """
import dataclasses, json, sys, warnings
warnings.simplefilter("ignore")
from optimum.neuron import NeuronTrainingArguments
from train.arguments import DataArguments, ModelArguments, RunArguments
out = {}
for group in (ModelArguments, DataArguments, RunArguments, NeuronTrainingArguments):
    for f in dataclasses.fields(group):
        if not f.init:
            continue
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        kind = str(f.type) if kind in ("Optional", "Union") else kind
        default = f.default if f.default is not dataclasses.MISSING else None
        out[f.name] = {"type": kind.replace("typing.", ""), "default": str(getattr(default, "value", default))}
json.dump(dict(sorted(out.items())), sys.stdout, indent=1)
"""


def train_options() -> str:
    """train/options/sdk2.20.json: every flag that the trainer of this stack takes."""
    done = subprocess.run(
        [ROOT / ".venv-train" / "bin" / "python", "-c", LIST_TRAIN_OPTIONS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"generated: the training environment cannot list its flags:\n{done.stderr[-2000:]}")
    return done.stdout + "\n"


def transcripts() -> str:
    """docs/reference/transcripts.md: what the command line says."""
    from tests.transcripts import page

    return page()


FILES = {"train/options/sdk2.20.json": train_options, "docs/reference/transcripts.md": transcripts}


def main() -> int:
    stale = []
    for name, make in FILES.items():
        path, text = ROOT / name, make()
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for name in stale:
        print(f"{name} is out of date: run `make generated`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
