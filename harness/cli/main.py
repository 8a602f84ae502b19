"""The command line: parsing only; every verb calls one function per step.

Imports are inside the verbs, so that `harness --help` loads neither pydantic nor boto3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from harness import interrupts
from harness.cli import account, cleanup, endpoints, images, local, output, rules, runs, ui, verify
from harness.errors import HarnessError, Interrupted
from harness.paths import runs_dir

app = typer.Typer(
    help="Fine-tune LLMs on AWS Trainium, serve them on Inferentia2; the same requests run on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,  # Rich's help takes 0.3 s to import
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS: tuple[Callable[..., None], ...] = (runs.plan, runs.run, runs.train, endpoints.deploy, endpoints.invoke)
VERBS += (endpoints.proxy, runs.evaluate, runs.compare, ui.ui)
VERBS += (runs.ps, runs.logs, cleanup.down, runs.schema)
VERBS += (rules.lint, rules.rules, rules.prices)
VERBS += (
    account.setup,
    account.init,
    cleanup.sweep,
    account.doctor,
    verify.verify,
    images.build,
    images.push,
    images.images,
)
for verb in VERBS:
    app.command()(verb)


def _versions(wanted: bool) -> None:
    if wanted:
        from harness.spec import stacks

        for line in stacks.versions():
            output.out(line)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Show the versions of the harness and of its stacks.", callback=_versions)
]


@app.callback()
def _options(version: Version = False) -> None:
    """Options that come before a command. Each is carried out by its own callback."""


app.add_typer(local.app, name="local")


def main() -> None:
    """Run the command line; a HarnessError becomes its lines and its exit code, never a traceback."""
    interrupts.install()
    try:
        app(prog_name="harness")
    except (HarnessError, Interrupted) as error:
        interrupts.ignore_signals()
        output.problems(error.problems)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (`harness ps | head -1`); nothing more can be said.
        sys.stderr.close()
        sys.exit(0)
    finally:
        _say_what_is_billed()


def _say_what_is_billed() -> None:
    """One line while the records of this directory know something that AWS bills. Silent in a shell's completion."""
    if "_HARNESS_COMPLETE" in os.environ or sys.stderr.closed:
        return
    if not any('"sagemaker"' in path.read_text(errors="replace") for path in runs_dir().glob("*/platform.json")):
        return
    from harness.run import spending

    if text := spending.line():
        output.note(text)
