"""`make verify-dlc`: both images built on the real Deep Learning Containers, then the checks of tests/images.

Needs a Docker engine, 60 GB of disk, and AWS credentials that may pull from the containers' account.
"""

from __future__ import annotations

import subprocess
import sys

from harness import images
from harness.images import Build
from tests.images import checks
from tests.images.conftest import HARNESS, ROOT


def main() -> int:
    done = subprocess.run([*HARNESS, "build", *sys.argv[1:]], cwd=ROOT, check=False)
    if done.returncode:
        return done.returncode
    code = 0
    for role in images.ROLES:
        name = Build().name(role)
        found = checks.outside(name, role) + checks.inside(name, role)
        print(f"{name}: {'clean' if not found else ''}")
        print("".join(f"  {line}\n" for line in found), end="")
        code = code or bool(found)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
