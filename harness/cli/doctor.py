"""The verb that says what this machine can do."""

from __future__ import annotations

import typer

from harness.cli import output
from harness.cli.runs import JsonFlag


def doctor(json: JsonFlag = False) -> None:
    """Say what this machine has, what is missing for what, and the remedy."""
    import json as encoder

    from harness.errors import MissingPrerequisite
    from harness.platforms import doctor as doctors

    found = list(doctors.look())
    if json:
        output.out(encoder.dumps([check.to_json() for check in found], indent=2))
    else:
        for check in found:
            state = "ok" if check.ok else "missing" if check.missing else "not here"
            output.out(f"{state:9}{check.name}: {check.found}")
            for word, text in (("for", check.needed_for), ("why", check.why), ("remedy", check.remedy)):
                if text and not check.ok:
                    output.out(f"         {word + ':':8}{text}")
    if any(check.missing for check in found):
        raise typer.Exit(MissingPrerequisite.exit_code)
