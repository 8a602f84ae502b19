"""`make verify-dlc`: both images built on the real Deep Learning Containers, then the checks of tests/images.

Needs a Docker engine, 60 GB of disk, and AWS credentials that may pull from the containers' account.
"""

from __future__ import annotations

import argparse
import sys

from harness.cli import output
from harness.errors import HarnessError
from harness.images import build as images, registry
from harness.images.build import Build
from tests.images import checks


def main() -> int:
    """Exit code 0 where both are clean, 1 with a line for each finding; a refusal has its own."""
    parser = argparse.ArgumentParser(prog="make verify-dlc")
    parser.add_argument("--region", default="us-west-2", help="where the base images are fetched from")
    region = parser.parse_args().region
    what = Build(dlc_region=region)
    try:
        with output.reporter() as reporter, registry.dlc_credentials(region) as config:
            images.build(what, reporter, config)
    except HarnessError as error:
        output.problems(error.problems)
        return error.exit_code
    code = 0
    for role in images.ROLES:
        name = what.name(role)
        found = checks.outside(name, role) + checks.inside(name, role)
        output.out(f"{name}: {'clean' if not found else f'{len(found)} findings'}")
        for line in found:
            output.out(f"  {line}")
        code = code or bool(found)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
