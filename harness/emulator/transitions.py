"""SecondaryStatusTransitions of a training job: how DescribeTrainingJob tells what has happened."""

from __future__ import annotations

from typing import Any

from harness.emulator.trainingjob import TrainingJob

# SecondaryStatusTransitions[].StatusMessage
MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading the training image",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Training job interrupted by a spot interruption",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
}


def transitions(before: list[dict[str, Any]], job: TrainingJob, at: float) -> list[dict[str, Any]]:
    """SecondaryStatusTransitions: each ends where the next begins; the last of an ended job has ended too."""
    out = list(before)
    for status, began in job.transitions:
        start = round(began, 3)
        if out and out[-1]["Status"] == status == "Starting":
            continue  # the one that CreateTrainingJob wrote
        if out:
            out[-1] = {**out[-1], "EndTime": out[-1].get("EndTime", start)}
        out.append({"Status": status, "StartTime": start, "StatusMessage": MESSAGES[status]})
    if job.status in ("Completed", "Failed", "Stopped"):
        out[-1] = {**out[-1], "EndTime": at}
        if job.status == "Failed" and job.failure_reason:
            out[-1]["StatusMessage"] = job.failure_reason.splitlines()[0]
    return out
