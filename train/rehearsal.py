"""Nothing is first tried at the end: what the end of a job needs is done once, in small, before the first step.

The export's own calls write the model's configuration, generation configuration, tokenizer and one row of each weight
beside where the artifact will be, and the disks are asked for room. What is wrong is refused while nothing is paid
for; train/endings.py has repaired the generation configuration before.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from train.arguments import ArgumentError
from train.export import save

EXPORTED_BYTES = 2  # a parameter in bf16
# Weights in fp32 and two moments of AdamW, in a checkpoint.
CHECKPOINT_BYTES = 12
SPARE = 64 << 20  # bytes: tokenizer, configuration, logs


def rehearse(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save as the export will, with one row of each weight, beside `folder`; nothing of it stays.

    Raises ArgumentError with the reason, which would otherwise come up after the last step.
    """
    # Every worker of a host does it, at the same time and in the same place: each has names of its own.
    partial = folder.parent / f".{folder.name}.rehearsal-{os.getpid()}"
    moved = folder / partial.name
    try:
        partial.mkdir(parents=True, exist_ok=True)
        save(model, (), partial)
        tokenizer.save_pretrained(partial)
        if folder.is_dir():  # SageMaker makes it; elsewhere the export does, where `partial` could be made
            shutil.move(partial / "config.json", moved)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ArgumentError(
            f"the trained model could not be saved ({type(error).__name__}: {reason}); tried before the first step"
        ) from error
    finally:
        moved.unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)


def require_room(parameters: int, trained: int, arguments: Any, export_dir: Path) -> None:
    """Raises ArgumentError where checkpoints and artifact do not fit on their disks.

    `parameters` of the model, `trained` of them; the export writes beside `export_dir` first and moves, so once.
    """
    wanted: dict[Path, float] = {_existing(export_dir): parameters * EXPORTED_BYTES + SPARE}
    if str(getattr(arguments.save_strategy, "value", arguments.save_strategy)) != "no":
        kept = (arguments.save_total_limit or 2) + 1  # an older one is deleted after the newer one is written
        each = trained * CHECKPOINT_BYTES
        folder = _existing(Path(arguments.output_dir))
        wanted[folder] = wanted.get(folder, 0) + kept * each
    disks: dict[int, tuple[float, list[str], int]] = {}
    for folder, need in wanted.items():
        disk = folder.stat().st_dev
        already, names, free = disks.get(disk, (0.0, [], shutil.disk_usage(folder).free))
        disks[disk] = (already + need, [*names, str(folder)], free)
    problems = [
        f"{' and '.join(names)}: {free / 1e9:.1f} GB are free, {need / 1e9:.1f} GB are needed for the artifact and "
        f"checkpoints: free some, raise compute.volume_gb, or lower save_total_limit"
        for need, names, free in disks.values()
        if free < need
    ]
    if problems:
        raise ArgumentError("\n".join(problems))


def _existing(path: Path) -> Path:
    """The path itself or the nearest parent that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
