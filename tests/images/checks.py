"""Checks of an image from outside: on the stand-ins in tests, on the real bases by `make verify-dlc`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.images import build as images
from tests.images.conftest import docker

INSIDE = Path(__file__).with_name("inside.py")
MOST_ON_TOP = 50_000_000  # bytes unpacked on the base
ENTRYPOINT = ["python3", "-m", "containers.entrypoint"]
MOST_DLC_LABELS = 10


def config_of(image: str) -> dict[str, Any]:
    """docker inspect's Config."""
    config: dict[str, Any] = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))
    return config


def outside(image: str, role: str) -> list[str]:
    """One line for each finding in the configuration and the layers."""
    config, found = config_of(image), []
    labels = config.get("Labels") or {}
    if config.get("Entrypoint") != ENTRYPOINT:
        found.append(f"entrypoint {config.get('Entrypoint')}, expected {ENTRYPOINT}")
    if config.get("Cmd") != [role]:
        found.append(f"command {config.get('Cmd')}, expected {[role]}")
    if config.get("User"):
        found.append(f"user {config['User']}: SageMaker runs containers as root")
    for name in ("neuron-harness.stack", "neuron-harness.role", "org.opencontainers.image.revision"):
        if not labels.get(name):
            found.append(f"label {name} is missing")
    dlc = [name for name in labels if ".sagemaker.dlc." in name]
    if len(dlc) > MOST_DLC_LABELS:
        found.append(f"{len(dlc)} labels of the Deep Learning Containers, {MOST_DLC_LABELS} at most")
    if role == "serve" and labels.get("com.amazonaws.sagemaker.capabilities.multi-models") != "false":
        found.append("it claims to serve several models")
    if role == "train" and config.get("Healthcheck", {}).get("Test") != ["NONE"]:
        found.append(f"health check {config.get('Healthcheck')}: a training container has no port")
    architecture = docker("image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", image)
    if architecture != "linux/amd64":
        found.append(f"platform {architecture}")
    on_top = sum(layer.bytes for layer in images.ours(images.layers(image)))
    if not 0 < on_top <= MOST_ON_TOP:
        found.append(f"{on_top} bytes on the base, {MOST_ON_TOP} at most")
    return found


def inside(image: str, role: str) -> list[str]:
    """One line for each finding in the file system and the packages; pins against the image's own label."""
    mount = ["--user", "root", "--volume", f"{INSIDE}:/mnt/inside.py:ro", "--network", "none"]
    text = docker("run", "--rm", *mount, "--entrypoint", "python3", image, "/mnt/inside.py", role, check=False)
    labels = config_of(image)["Labels"]
    pins = labels["neuron-harness.pins"].split()
    if labels.get("neuron-harness.stand-in"):
        pins = [pin for pin in pins if not pin.startswith("transformers-neuronx")]
    text += "\n" + docker(
        "run", "--rm", "--network", "none", image, "python3", "-m", "containers.pins", *pins, check=False
    )
    return [line for line in text.splitlines() if line.strip()]
