"""A directory that stands for a Neuron host's /dev and /sys."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def fake_host(root: Path, devices: int, driver: str = "2.20.28.0", efa: int = 0, nodes: bool = False) -> Path:
    """`nodes`: character devices that are /dev/null by number, for containers; needs root. Else empty files."""
    (root / "dev" / "infiniband").mkdir(parents=True)
    names = [f"neuron{n}" for n in range(devices)] + [f"infiniband/uverbs{n}" for n in range(efa)]
    for name in names:
        path = root / "dev" / name
        if nodes:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        else:
            path.touch()
    (root / "dev" / "neuron-notes").touch()
    if driver:
        (root / "sys" / "module" / "neuron").mkdir(parents=True)
        (root / "sys" / "module" / "neuron" / "version").write_text(driver + "\n")
    return root
