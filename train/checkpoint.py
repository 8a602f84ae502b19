"""Checkpoints that survive: saved on SIGTERM, complete or not used, and never another run's.

transformers writes `checkpoint-<step>` file by file, so a KILL leaves a torn one. After the last file we write
complete.json with the size of each; only a directory that has it and agrees with it is resumed from. Two are kept,
because the older one is deleted before the newer one is sealed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from train.agreement import Agreement

SEAL = "complete.json"
# Arguments that change what a step computes: a checkpoint made with others is another run's.
DECISIVE = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "seed",
    "group_by_length",
    "label_smoothing_factor",
)
# How the model and the optimizer's state are cut, and how many rows a step has.
LAYOUT = ("tensor_parallel_size", "pipeline_parallel_size", "zero_1", "world_size")


class CheckpointError(ValueError):
    """There are checkpoints, and none of them may be resumed from; one line with the reason."""


def fingerprint(
    arguments: Any, data_sha256: str, block_size: int, model_config: dict[str, Any], **more: Any
) -> dict[str, str]:
    """What makes two runs the same, by name, so that a difference can be named; `more` is what others know."""
    config = {k: v for k, v in model_config.items() if k not in ("_name_or_path", "use_cache", "torch_dtype")}
    return {
        **{name: str(getattr(arguments, name)) for name in (*DECISIVE, *LAYOUT)},
        **{name: str(value) for name, value in more.items()},
        "block_size": str(block_size),
        "data": data_sha256,
        "model": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16],
    }


def seal(folder: Path, run: dict[str, str]) -> None:
    """Mark `folder` as complete: called after its last file is on disk."""
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in _files(folder)}
    for path in _files(folder):
        _to_disk(path)
    partial = folder / f".{SEAL}.partial"
    partial.write_text(json.dumps({"run": run, "sizes": sizes}, indent=1), encoding="utf-8")
    _to_disk(partial)
    os.replace(partial, folder / SEAL)


def latest(output_dir: Path, run: dict[str, str]) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint to resume from, or None; lines about those passed over).

    Raises CheckpointError where the newest sealed one is another run's, or where all of them are damaged.
    """
    notes: list[str] = []
    damaged = 0
    for folder in sorted(output_dir.glob("checkpoint-*"), key=_step, reverse=True):
        try:
            sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
            stored, sizes = dict(sealed["run"]), dict(sealed["sizes"])
        except FileNotFoundError:
            notes.append(f"{folder.name}: its writing was interrupted, passed over")
            continue
        except (ValueError, KeyError, TypeError):
            notes.append(f"{folder.name}: {SEAL} is damaged, passed over")
            damaged += 1
            continue
        _require_same(folder, run, stored)
        wrong = _damage(folder, sizes)
        if wrong:
            notes.append(f"{folder.name}: {wrong}, passed over")
            damaged += 1
            continue
        return folder, notes
    if damaged:
        raise CheckpointError(f"no usable checkpoint ({'; '.join(notes)}); empty the checkpoint directory")
    return None, notes


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint is complete, and still as it was when it was sealed."""
    try:
        sizes = json.loads((folder / SEAL).read_text(encoding="utf-8"))["sizes"]
    except (OSError, ValueError, KeyError):
        return False
    return not _damage(folder, dict(sizes))


def asked(output_dir: Path, run: dict[str, str], wanted: str | None) -> str | None:
    """The checkpoint to resume from, printed, with what was passed over.

    `wanted` is --resume_from_checkpoint: nothing and `true` mean the newest one in `output_dir`, which `true`
    requires; `false` refuses to overwrite any; else it is the directory of one. Raises CheckpointError.
    """
    chosen, notes = _chosen(output_dir, run, (wanted or "").strip())
    for note in notes:
        print(f"checkpoint: {note}", flush=True)
    print(f"resuming from {chosen.name}" if chosen else "starting at step 0", flush=True)
    return str(chosen) if chosen else None


def _chosen(output_dir: Path, run: dict[str, str], word: str) -> tuple[Path | None, list[str]]:
    if word.lower() == "false":
        found = [p.name for p in output_dir.glob("checkpoint-*")]
        if found:
            raise CheckpointError(f"resume_from_checkpoint is false and {output_dir} holds {found[0]}: empty it")
        return None, []
    if word.lower() in ("", "true"):
        chosen, notes = latest(output_dir, run)
        if word and chosen is None:
            raise CheckpointError(f"resume_from_checkpoint is true and {output_dir} holds no checkpoint")
        return chosen, notes
    folder = Path(word)
    if not is_sealed(folder):
        raise CheckpointError(f"resume_from_checkpoint {word}: no complete checkpoint ({SEAL} is missing or differs)")
    _require_same(folder, run, dict(json.loads((folder / SEAL).read_text(encoding="utf-8"))["run"]))
    return folder, []


def _require_same(folder: Path, run: dict[str, str], stored: dict[str, str]) -> None:
    different = sorted(k for k in {*stored, *run} if stored.get(k) != run.get(k))
    if different:
        shown = ", ".join(f"{k} {stored.get(k)} there, {run.get(k)} here" for k in different[:3])
        raise CheckpointError(f"{folder.name} is another run's ({shown}); empty the checkpoint directory")


def newest(output_dir: Path) -> str:
    """`the last good checkpoint is checkpoint-<n>`, or that there is none."""
    names = [p.name for p in sorted(output_dir.glob("checkpoint-*"), key=_step, reverse=True) if is_sealed(p)]
    return f"the last good checkpoint is {names[0]}" if names else "there is no checkpoint before it"


def _damage(folder: Path, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return ""


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".") and p.name != SEAL]


def _to_disk(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _step(folder: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else -1


class StopOnSignal(TrainerCallback):
    """SIGTERM and SIGINT end training after the step that runs, with a checkpoint; every checkpoint gets sealed.

    With several workers it ends a few steps later, after one that they agree on.
    """

    def __init__(self, run: dict[str, str]) -> None:
        self.run = run
        self.received = 0  # by this worker
        self.signum = 0  # that all workers stop by
        self.agreement = Agreement(None)

    def install(self) -> None:
        """Take over the signals. A second one changes nothing: the checkpoint is being written."""

        def note(signum: int, _frame: FrameType | None) -> None:
            if not self.received:
                print(f"signal {signum}: saving a checkpoint after this step", flush=True)
            self.received = self.received or signum

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, note)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.agreement = Agreement.of_this_job()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.signum = self.agreement.after_step(state.global_step, self.received)
        if self.signum and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def stopped(self, state: Any) -> bool:
        """Whether training ended before its last step; all workers come here before one of them ends."""
        if not self.signum or state.global_step >= state.max_steps:
            return False
        self.agreement.leave()
        print(f"stopped by signal {self.signum} after step {state.global_step}; checkpoint saved", flush=True)
        return True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.run)
