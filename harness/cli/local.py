"""`harness local`: the local SageMaker as a server for every AWS client on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import output
from harness.cli.runs import ExecutorFlag, JsonFlag

app = typer.Typer(help="The local SageMaker: a server for every AWS client on this machine.", no_args_is_help=True)

State = Annotated[
    Path | None,
    typer.Option(
        "--state", help="Its directory, instead of .local: several servers, several directories.", metavar="DIRECTORY"
    ),
]


def _folder(state: Path | None) -> Path:
    from harness.paths import local_state

    return local_state() if state is None else state


@app.command()
def up(
    state: State = None,
    port: Annotated[int | None, typer.Option(min=1024, max=65535, help="Instead of a free one.")] = None,
    region: Annotated[str, typer.Option(help="The region of clients that name none.")] = "us-west-2",
    executor: ExecutorFlag = "",
) -> None:
    """Start it; prints its address."""
    from harness import executors
    from harness.local import control

    executors.check_name(executor)
    server, started = control.up(_folder(state), port, region, executor)
    control.keep(server)
    output.note(f"the local SageMaker {'is' if started else 'was already'} up; state in {server.state}")
    output.note('for AWS clients in this shell: eval "$(harness local env)"')
    output.out(server.url)


@app.command()
def down(state: State = None) -> None:
    """End it: jobs are stopped with time for a checkpoint, endpoints start again with the next `up`."""
    from harness.local import control

    output.out("ended" if control.down(_folder(state)) else "it was not up")


@app.command()
def status(state: State = None, json: JsonFlag = False) -> None:
    """Say whether it is up, and what it works on."""
    import json as encoder

    from harness.local import control

    server = control.need(_folder(state))
    health = control.health(server) or {}
    if json:
        output.out(encoder.dumps({"url": server.url, "pid": server.pid, "region": server.region, **health}, indent=2))
        return
    output.out(f"{server.url} up, process {server.pid}, region {server.region}")
    for worker in health.get("busy", []):
        output.out(f"  {worker}")


@app.command()
def env(state: State = None) -> None:
    """Print what makes AWS clients talk to it, for `eval`."""
    import shlex

    from harness.local import control

    for name, value in control.need(_folder(state)).environment().items():
        output.out(f"export {name}={shlex.quote(value)}")


@app.command()
def fault(
    kind: Annotated[str | None, typer.Argument(help="What goes wrong; without it the list of kinds.")] = None,
    state: State = None,
    name: Annotated[str, typer.Option(help="For resources whose name fits this pattern.")] = "*",
    operation: Annotated[str, typer.Option(help="For calls of operations that fit this pattern.")] = "*",
    after: Annotated[int, typer.Option(min=0, help="After so many steps, seconds or parts.")] = 0,
    times: Annotated[int, typer.Option(min=1, help="How often.")] = 1,
    clear: Annotated[bool, typer.Option("--clear", help="Forget all that have not happened yet.")] = False,
) -> None:
    """Make something go wrong, as AWS would show it."""
    from harness.local import control

    server = control.need(_folder(state))
    if clear:
        control.faults(server, "DELETE")
    if kind is not None:
        fault = {"kind": kind, "name": name, "operation": operation, "after": after, "times": times}
        control.faults(server, "POST", fault)
    found = control.faults(server, "GET")
    if kind is None and not clear:
        output.table("", sorted(found["kinds"].items()), ("kind", "what happens"))
    for item in found["faults"]:
        output.out(f"to come: {item['kind']} for {item['name']}, {item['times']} times, after {item['after']}")
