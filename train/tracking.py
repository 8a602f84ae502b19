"""TensorBoard, MLflow and the like, without a network: what a tracker writes goes where the job's output goes.

transformers' callbacks do the work. Here their folders are set, to what becomes output.tar.gz, and a tracker whose
package is not in the image is refused before anything is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from train.arguments import ArgumentError

# tracker -> (variable of the environment, what it is where the user gave none)
OFFLINE = {
    "mlflow": ("MLFLOW_TRACKING_URI", "file://{folder}/mlruns"),
    "wandb": ("WANDB_MODE", "offline"),
}


def prepare(training: Any, metrics_dir: Path) -> None:
    """Give the trackers of `training.report_to` their folders. Raises ArgumentError for one that is not installed."""
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    if missing := [name for name in training.report_to if name not in available]:
        raise ArgumentError(
            f"report_to {', '.join(missing)}: its package is not in this image, which has "
            f"{', '.join(available) or 'none'}: use one of these, or an image derived with `RUN pip install "
            f"{missing[0]}`"
        )
    folder = metrics_dir.absolute()
    if Path(training.logging_dir).parent == Path(training.output_dir) / "runs":  # transformers' default
        training.logging_dir = str(folder / "tensorboard")
    for name in training.report_to:
        if name in OFFLINE:
            variable, value = OFFLINE[name]
            os.environ.setdefault(variable, value.format(folder=folder))
    if "wandb" in training.report_to:
        os.environ.setdefault("WANDB_DIR", str(folder))
