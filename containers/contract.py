"""SageMaker's promises to a container and back: the one place that knows paths, files, limits, ports and signals.

The images read by it, the executors write by it, so that what runs here obeys what runs on AWS. Standard library
and Python 3.10 syntax only. Sources, in brackets below:
  [train]  docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
  [infer]  docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
  [api]    botocore's service model sagemaker/2017-07-24
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containers import compatibility

DEFAULT_BASE = "/opt/ml"
# The same variable as SageMaker's own training toolkit uses to run on a plain host.
BASE_ENV = "SAGEMAKER_BASE_DIR"
# Which device stands in where there is no accelerator: set by executors, never by a request.
DEVICE_ENV = "NEURON_HARNESS_DEVICE"
# Set by SageMaker for multi-container endpoints [infer]; the executors use it to serve on a free port.
PORT_ENV = "SAGEMAKER_BIND_TO_PORT"
DEFAULT_PORT = 8080
# Serve on 127.0.0.1 only: set by the executor that runs containers as processes, on a machine with other users.
LOOPBACK_ENV = "NEURON_HARNESS_LOOPBACK"
DEFAULT_CHECKPOINTS = "/opt/ml/checkpoints"  # CheckpointConfig.LocalPath [api]

# Limits [api]. Lengths are in characters.
MAX_HYPERPARAMETERS, MAX_HYPERPARAMETER_KEY, MAX_HYPERPARAMETER_VALUE = 100, 256, 2500
MAX_FAILURE_REASON = 1024
MAX_INVOCATION_BODY = 25 * 1024 * 1024  # bytes, real-time endpoints [infer]

# Times, in seconds.
TRAIN_STOP_WAIT = 120  # StopTrainingJob: SIGTERM, then SIGKILL [train]
SERVE_STOP_WAIT = 30  # scale-in and update: SIGTERM, then SIGKILL [infer]
PING_TIMEOUT = 2  # a longer answer counts as a failed health check [infer]
STARTUP_WINDOW = 8 * 60  # consistent 200s by then, unless the variant says otherwise [infer]
INVOCATION_TIMEOUT = 60  # a regular answer [infer]
STREAM_TIMEOUT = 8 * 60  # a whole stream [infer]
MAX_STARTUP_WINDOW = 3600  # ContainerStartupHealthCheckTimeoutInSeconds [api]

# Ours, below SageMaker's, so that a client gets what there is of its answer instead of an error.
ANSWER_DEADLINE = 55  # INVOCATION_TIMEOUT less the time that a 25 MB body takes on its way
STREAM_DEADLINE = 450  # STREAM_TIMEOUT less half a minute for a reader who is behind

EXIT_TERMINATED = 143  # 128 + SIGTERM: stopped before the end, with a checkpoint
EXIT_INTERRUPTED = 130

# Channels whose files the trainer takes without being told (what run_clm calls them).
CHANNEL_ARGUMENTS = {"model": "model_name_or_path", "train": "train_file", "validation": "validation_file"}
# Arguments that the contract owns: the entrypoint derives them from the base directory.
RESERVED_ARGUMENTS = ("output_dir", "export_dir", "metrics_dir")


CREDENTIAL = re.compile(r"(?:.*_)?(?:token|key|secret|password|passwd)", re.IGNORECASE)


def is_credential(name: str) -> bool:
    """Whether a hyperparameter, flag or variable of that name holds a credential, which no log may show."""
    return CREDENTIAL.fullmatch(name) is not None


class ContractError(ValueError):
    """Something does not fit the contract; the message is one line that names the limit and the value."""


@dataclass(frozen=True)
class Paths:
    """Every path of the contract below one base directory (/opt/ml in a container)."""

    base: Path

    @classmethod
    def from_environment(cls) -> Paths:
        return cls(Path(os.environ.get(BASE_ENV) or DEFAULT_BASE))

    @property
    def config(self) -> Path:
        return self.base / "input" / "config"

    @property
    def data(self) -> Path:
        return self.base / "input" / "data"

    @property
    def model(self) -> Path:
        """What a training job leaves here becomes model.tar.gz; at an endpoint it is read-only."""
        return self.base / "model"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def output_data(self) -> Path:
        """Becomes output.tar.gz."""
        return self.output / "data"

    @property
    def failure(self) -> Path:
        return self.output / "failure"

    @property
    def checkpoints(self) -> Path:
        """Synchronised with CheckpointConfig.S3Uri in both directions."""
        return self.base / "checkpoints"

    def channel(self, name: str) -> Path:
        """Its directory. Raises ContractError for a name that is not a directory below the others'."""
        if not name.strip(".") or "/" in name:
            raise ContractError(f"{name!r} is not a channel name")
        return self.data / name


@dataclass(frozen=True)
class Resources:
    """resourceconfig.json: who this host is among how many."""

    current_host: str = "algo-1"
    hosts: tuple[str, ...] = ("algo-1",)
    instance_type: str = ""
    network_interface: str = "eth0"

    @property
    def ordered_hosts(self) -> tuple[str, ...]:
        """By number: SageMaker sorts by letters, which puts algo-10 before algo-2."""
        return tuple(sorted(self.hosts, key=lambda h: (len(h), h)))


@dataclass(frozen=True)
class TrainingInput:
    """What the platform lays down before a training container starts."""

    hyperparameters: dict[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)


def encode_hyperparameters(values: Mapping[str, bool | int | float | str]) -> dict[str, str]:
    """Every value becomes a string, as the API wants it: True is "true", 5e-05 is "5e-05".

    Raises ContractError naming the first limit that is broken [api].
    """
    out = {}
    for key, value in values.items():
        text = ("true" if value else "false") if isinstance(value, bool) else str(value)
        if len(key) > MAX_HYPERPARAMETER_KEY:
            raise ContractError(f"hyperparameter name of {len(key)} characters; {MAX_HYPERPARAMETER_KEY} fit")
        if len(text) > MAX_HYPERPARAMETER_VALUE:
            raise ContractError(f"hyperparameter {key} has {len(text)} characters; {MAX_HYPERPARAMETER_VALUE} fit")
        out[key] = text
    if len(out) > MAX_HYPERPARAMETERS:
        raise ContractError(f"{len(out)} hyperparameters; {MAX_HYPERPARAMETERS} fit")
    return out


def to_argv(hyperparameters: Mapping[str, str]) -> list[str]:
    """Hyperparameters as command line arguments, sorted by name, never through a shell.

    An empty string is a bare flag (`--do_train`), which is what the lab's `"do_train": ""` means and what
    SageMaker's toolkit only gets right by joining the words in a shell.
    """
    argv = []
    for key in sorted(hyperparameters):
        value = hyperparameters[key]
        if value.startswith("-"):  # -1e-5 would be taken for another flag
            argv.append(f"--{key}={value}")
        else:
            argv += [f"--{key}", value] if value != "" else [f"--{key}"]
    return argv


def write_training_input(paths: Paths, job: TrainingInput) -> None:
    """The platform's side: directories and the three configuration files. Channel data is the caller's."""
    for folder in (paths.config, paths.data, paths.model, paths.output_data, paths.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    who = job.resources
    group = {
        "instance_group_name": "homogeneousCluster",
        "instance_type": who.instance_type,
        "hosts": list(who.hosts),
    }
    channel = {
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
    }
    _write_json(paths.config / "hyperparameters.json", job.hyperparameters)
    _write_json(paths.config / "inputdataconfig.json", dict.fromkeys(job.channels, channel))
    _write_json(
        paths.config / "resourceconfig.json",
        {
            "current_host": who.current_host,
            "current_instance_type": who.instance_type,
            "current_group_name": "homogeneousCluster",
            "hosts": list(who.hosts),
            "instance_groups": [group],
            "network_interface_name": who.network_interface,
            "topology": None,
        },
    )


def read_training_input(paths: Paths) -> TrainingInput:
    """The container's side. Files that are absent mean their defaults, as with `docker run IMAGE train`.

    Raises ContractError for a file that is not a JSON object or a hyperparameter that is not a string.
    """
    hyperparameters = _read_json(paths.config / "hyperparameters.json")
    for key, value in hyperparameters.items():
        if not isinstance(value, str):
            raise ContractError(f"hyperparameters.json: {key} is {value!r}; every value is a string")
    raw = _read_json(paths.config / "resourceconfig.json")
    default = Resources()
    resources = Resources(
        current_host=raw.get("current_host", default.current_host),
        hosts=tuple(raw.get("hosts", default.hosts)),
        instance_type=raw.get("current_instance_type") or "",
        network_interface=raw.get("network_interface_name", default.network_interface),
    )
    channels = tuple(_read_json(paths.config / "inputdataconfig.json"))
    return TrainingInput(hyperparameters, channels, resources)


def training_arguments(paths: Paths, job: TrainingInput) -> list[str]:
    """The trainer's argv: the hyperparameters, and every SageMaker path as an argument.

    A channel stands for the argument in CHANNEL_ARGUMENTS unless the hyperparameters already give it. A
    data channel of one file is passed as that file, other channels as the directories they are.
    """
    given, lines = compatibility.understood(job.hyperparameters)
    for line in lines:
        print(f"entrypoint: {line}", flush=True)
    given = {name: _here(paths, value) for name, value in given.items()}
    for name in RESERVED_ARGUMENTS:
        if name in given:
            raise ContractError(f"hyperparameter {name}: the container sets it from its base directory; remove it")
    for channel, argument in CHANNEL_ARGUMENTS.items():
        if channel in job.channels and argument not in given:
            folder = paths.channel(channel)
            given[argument] = str(folder if channel == "model" else _data(folder))
    # Checkpoints go where SageMaker synchronises them; only the finished model enters the artifact.
    given["output_dir"] = str(paths.checkpoints)
    given["export_dir"] = str(paths.model)
    given["metrics_dir"] = str(paths.output_data)
    if os.environ.get(DEVICE_ENV) and "device" not in given:
        given["device"] = os.environ[DEVICE_ENV]
    return to_argv(given)


def _here(paths: Paths, value: str) -> str:
    """A path of the container, where the base directory is another one (executor process)."""
    inside = value == DEFAULT_BASE or value.startswith(f"{DEFAULT_BASE}/")
    return f"{paths.base}{value.removeprefix(DEFAULT_BASE)}" if inside else value


def _data(folder: Path) -> Path:
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    if not files:
        raise ContractError(f"channel {folder.name}: no data file in {folder}")
    return files[0] if len(files) == 1 else folder


def write_failure(paths: Paths, text: str) -> None:
    """The failure file; its first 1,024 characters become FailureReason, so keep the end of a long text."""
    paths.failure.parent.mkdir(parents=True, exist_ok=True)
    paths.failure.write_text(text.strip()[-MAX_FAILURE_REASON:], encoding="utf-8")


def read_failure(paths: Paths) -> str:
    """What the platform shows as FailureReason; the empty string where the container wrote none."""
    try:
        return paths.failure.read_text(encoding="utf-8", errors="replace")[:MAX_FAILURE_REASON]
    except FileNotFoundError:
        return ""


def serving_port() -> int:
    """8080, or what the platform asks for."""
    return int(os.environ.get(PORT_ENV) or DEFAULT_PORT)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ContractError(f"{path.name}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ContractError(f"{path.name}: a JSON object expected, found {type(value).__name__}")
    return value
