"""Whether this Python has the packages that the stack says: run while an image is built, and in its tests.

    python -m containers.pins transformers==4.48.1 accelerate==0.29.2

Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version


def differences(pins: list[str]) -> list[str]:
    """One line for each pin `name==version` that is not what is installed. A local version (+cpu) is let pass."""
    found = []
    for pin in pins:
        name, _, wanted = pin.partition("==")
        try:
            installed = version(name)
        except PackageNotFoundError:
            found.append(f"{name} {wanted} is not installed")
            continue
        if installed.partition("+")[0] != wanted:
            found.append(f"{name} is {installed}, the stack says {wanted}")
    return found


def main(argv: list[str]) -> int:
    lines = differences(argv)
    for line in lines:
        print(f"pins: {line}", file=sys.stderr)
    if lines:
        print("pins: this base image is not the one of docker-bake.hcl's row", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
