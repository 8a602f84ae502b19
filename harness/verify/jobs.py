"""The requests of `harness verify`: one run of a tiny model, and a job for each thing that a run does not show.

Pure, as a plan is. Every check runs in an image, as a job under the same contract, because the harness knows no
torch; what a job found is in its output data.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from containers.contract import DEVICE_ENV
from harness.errors import InvalidInput
from harness.spec import plan as plans, service_model
from harness.spec.plan import Plan

DEVICES = ("cpu", "xla-cpu", "neuron")
PREPARED = "prepared_uri"  # a placeholder of ours: the output of the job `prepare`
PLACEHOLDERS = {**plans.PLACEHOLDERS, PREPARED: "s3://bucket/path/model.tar.gz"}

# fp32, so that the losses can be held against device cpu's; the job tp2 trains in bf16.
RUN_FILE = """name = "verify"
[model]
id = "./model"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
[train]
block_size = 32
per_device_train_batch_size = 4
per_device_eval_batch_size = 8
max_steps = 20
learning_rate = 2e-3
warmup_steps = 2
logging_steps = 1
eval_strategy = "steps"
eval_steps = 10
bf16 = false
[serve]
tp_degree = 1
n_positions = 128
max_batch_size = 4
[compute]
train_instance = "ml.trn1.2xlarge"
serve_instance = "ml.inf2.xlarge"
volume_gb = 100
max_runtime_seconds = 1800
startup_seconds = 1200
"""

# name -> seconds after which the job is given up. Most of the time is the compiler's: minutes for each set of graphs
# on a trn1.2xlarge; never measured with this model.
LIMITS = {
    "train": 1800,
    "host-train": 300,
    "host-serve": 300,
    "reference": 900,
    "precompile": 1800,
    "tp2": 2400,
    "prepare": 1800,
    "logits": 1800,
}
ENDPOINT_SECONDS = 1200 + 600  # start-up window, then a few requests; kept by the harness, not by the service
LEAST_SHARE = 0.25  # of LIMITS: with less the compiler could not even finish one set of graphs


# A worker for each core that the host has would be data parallelism: other batches than device cpu's.
ONE_CORE = {"NEURON_RT_NUM_CORES": "1"}
# The same rows a step as in the other jobs, in two batches.
TP2 = {
    "tensor_parallel_size": "2",
    "bf16": "true",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "2",
}


@dataclass(frozen=True)
class Jobs:
    """The run's plan, changed for the device, and the requests of the other jobs by name, in order."""

    plan: Plan
    others: dict[str, dict[str, Any]]

    def requests(self) -> list[tuple[str, dict[str, Any]]]:
        """(operation, request with placeholders), as they are sent."""
        jobs = [("CreateTrainingJob", request) for request in self.others.values()]
        return [*plans.requests_of(self.plan), *jobs]


def make(plan: Plan, device: str, share: float = 1.0) -> Jobs:
    """The jobs for `device`, each with `share` of its time; validated against botocore's model."""
    environment = {"xla-cpu": {DEVICE_ENV: "neuron"}, "neuron": ONE_CORE}.get(device, {})
    train = _limited({**plan.create_training_job, "Environment": environment}, "train", share)
    others = {
        "host-train": _module(plan, "host-train", "train_image", "containers.host", environment=environment),
        "host-serve": _module(plan, "host-serve", "serve_image", "containers.host"),
    }
    if device != "cpu":
        # transformers would take torch_xla for its device otherwise.
        others["reference"] = _training(plan, "reference", {"device": "cpu"}, {"USE_TORCH_XLA": "0"})
    if device == "neuron":
        others["precompile"] = _training(plan, "precompile", {}, {**ONE_CORE, "RUN_NEURON_PARALLEL_COMPILE": "1"})
        others["tp2"] = _training(plan, "tp2", TP2, {"NEURON_RT_NUM_CORES": "2"})
        others["prepare"] = _module(plan, "prepare", "serve_image", "serve.prepare", "artifact_uri")
    source = PREPARED if device == "neuron" else "artifact_uri"
    others["logits"] = _module(plan, "logits", "serve_image", "serve.logits", source)
    others = {name: _limited(request, name, share) for name, request in others.items()}
    jobs = Jobs(replace(plan, create_training_job=train, base=None), others)
    for operation, request in jobs.requests():
        service_model.validate("sagemaker", operation, plans.resolve(request, PLACEHOLDERS))
    return jobs


def names(device: str) -> list[str]:
    """The jobs for `device`, in order."""
    ahead = ["precompile", "tp2", "prepare"] if device == "neuron" else []
    return ["train", "host-train", "host-serve", *(["reference"] if device != "cpu" else []), *ahead, "logits"]


def seconds(device: str, share: float = 1.0) -> dict[str, int]:
    """The longest each job may run, and the endpoint."""
    limits = {name: int(LIMITS[name] * share) for name in names(device)}
    return {**limits, "endpoint": ENDPOINT_SECONDS}


def share_of(max_cost: float, usd_per_hour: float, seconds: dict[str, int]) -> float:
    """How much of their time the jobs may take so that all of them together cost at most `max_cost` USD.

    The cap is real for jobs: SageMaker ends each at its MaxRuntimeInSeconds. Raises InvalidInput for a cap under
    which nothing could be seen.
    """
    endpoint = seconds["endpoint"] / 3600 * usd_per_hour
    total = sum(seconds.values()) / 3600 * usd_per_hour
    share = min(1.0, (max_cost - endpoint) / (total - endpoint))
    if share < LEAST_SHARE:
        least = endpoint + LEAST_SHARE * (total - endpoint)
        raise InvalidInput(
            f"with a cap of {max_cost:.2f} USD the jobs would be cut off before they show anything",
            f"at {usd_per_hour:.2f} USD an hour they may take up to {total:.2f} USD",
            f"--max-cost {least:.2f} or more",
        )
    return share


def _limited(request: dict[str, Any], name: str, share: float) -> dict[str, Any]:
    return {**request, "StoppingCondition": {"MaxRuntimeInSeconds": int(LIMITS[name] * share)}}


def _training(plan: Plan, name: str, more: dict[str, str], environment: dict[str, str]) -> dict[str, Any]:
    """The run's own training job with other hyperparameters or another environment."""
    request = _copy(plan, name)
    request["HyperParameters"] |= more
    request["Environment"] = environment
    return request


def _module(
    plan: Plan, name: str, image: str, module: str, model: str = "", environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """A job that runs one of our modules in an image, with the options of the endpoint and perhaps a model."""
    request = _copy(plan, name)
    request["AlgorithmSpecification"] = {
        "TrainingImage": {"placeholder": image},
        "TrainingInputMode": "File",
        "ContainerArguments": ["python3", "-m", module],
    }
    del request["HyperParameters"], request["InputDataConfig"]
    request["Environment"] = environment or {}
    if image == "serve_image":
        request["Environment"] = plan.tuned.create_model["PrimaryContainer"]["Environment"]
    if model:
        source = {"S3DataType": "S3Prefix", "S3Uri": {"placeholder": model}}
        request["InputDataConfig"] = [{"ChannelName": "model", "DataSource": {"S3DataSource": source}}]
    return request


def _copy(plan: Plan, name: str) -> dict[str, Any]:
    request = copy.deepcopy(plan.create_training_job)
    del request["CheckpointConfig"]  # twenty steps: nothing to go on with
    return {**request, "TrainingJobName": f"{plan.run_id}-{name}"}
