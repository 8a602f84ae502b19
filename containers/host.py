"""What this container has to work with: `python -m containers.host` writes host.json into the job's output data.

Read from files, so that it says the same in both images and on a host without the Neuron tools. Standard library and
Python 3.10 syntax only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from containers.contract import Paths

# Of both images; what is not installed is left out.
PACKAGES: tuple[str, ...] = (
    "torch",
    "torch-xla",
    "torch-neuronx",
    "libneuronxla",
    "neuronx-cc",
    "neuronx-distributed",
)
PACKAGES += ("optimum-neuron", "transformers-neuronx", "transformers", "accelerate", "tokenizers", "numpy")
RESULT = "host.json"


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """Driver, devices, runtime, packages; a value that is not to be had is the empty string or 0.

    `root` stands for / (tests). Sources: the Neuron SDK's sysfs user guide for the devices; the driver's
    MODULE_VERSION, which Linux shows in /sys/module; the image's own /opt/aws/neuron/lib for the runtime.
    """
    devices = sorted((root / "sys/class/neuron_device").glob("neuron[0-9]*"))
    libraries = [p.name for p in sorted((root / "opt/aws/neuron/lib").glob("libnrt.so.*"))]
    runtimes = [m.group(1) for name in libraries if (m := re.fullmatch(r"libnrt\.so\.(\d+\.\d+[\d.]*)", name))]
    return {
        "driver": _text(root / "sys/module/neuron/version"),
        "devices": len(devices),
        "cores": sum(len(list(device.glob("neuron_core[0-9]*"))) for device in devices),
        "device_files": len(list((root / "dev").glob("neuron[0-9]*"))),
        "runtime": runtimes[-1] if runtimes else "",
        "instance": _text(root / "sys/devices/virtual/dmi/id/product_name"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def main() -> int:
    found = facts()
    folder = Paths.from_environment().output_data
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("host:", json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
