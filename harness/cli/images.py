"""Verbs for the images: build, push, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import output
from harness.cli.runs import JsonFlag

StackOption = Annotated[str, typer.Option("--stack", help="Which pair of base images; the default if left out.")]
StandInFlag = Annotated[
    bool, typer.Option("--stand-in", help="On CPU stand-ins for the Deep Learning Containers, to run here.")
]
CaOption = Annotated[
    Path | None, typer.Option("--ca", help="Certificates that the build trusts; PIP_CERT's if left out.", exists=True)
]


def build(
    stack: StackOption = "",
    stand_in: StandInFlag = False,
    region: Annotated[str, typer.Option(help="Where the base images are fetched from.")] = "us-west-2",
    ca: CaOption = None,
    show: Annotated[
        bool, typer.Option("--print", help="Show what would be built, as JSON, and build nothing.")
    ] = False,
) -> None:
    """Build the training and the serving image."""
    import time

    from harness.images import build as images, engine, registry
    from harness.spec import stacks

    chosen = stacks.get(stack or stacks.DEFAULT)
    engine.check(builds=True)
    what = images.Build(chosen.name, stand_in, ca_bundle=ca, dlc_region=region)
    if show:
        output.out(images.printed(what))
        return
    started = time.monotonic()
    with output.reporter() as reporter:
        if stand_in:
            built = images.build(what, reporter)
        else:
            with registry.dlc_credentials(region) as config:
                built = images.build(what, reporter, config)
    for name, found in built.items():
        ours = images.ours(found)
        rows = [(_size(layer.bytes), layer.made_by[:100]) for layer in found]
        output.table(name, rows, ("size", "made by"))
        output.out(f"{_size(sum(x.bytes for x in found))} in all, {_size(sum(x.bytes for x in ours))} on the base\n")
    output.out(f"built in {time.monotonic() - started:.0f} s")


def push(
    stack: StackOption = "",
    stand_in: StandInFlag = False,
    region: Annotated[
        list[str] | None,
        typer.Option("--region", help="Where to; may be given twice. The profile's if left out."),
    ] = None,
) -> None:
    """Push the images to ECR and record their digests; prints name@digest."""
    from harness.images import build as images, registry
    from harness.spec import stacks

    chosen = stacks.get(stack or stacks.DEFAULT)
    with output.reporter() as reporter:
        for where in region or registry.regions():
            for made in registry.push(images.Build(chosen.name, stand_in), where, reporter):
                output.out(made.uri)


def images(json: JsonFlag = False) -> None:
    """Show the images on this machine, and what was pushed."""
    import json as encoder

    from harness.images import registry

    found = registry.local_images()
    pushed = registry.pushed()
    if json:
        output.out(encoder.dumps({"local": found, "pushed": [p.to_json() for p in pushed]}, indent=2))
        return
    if not found and not pushed:
        output.out("no images here; build them: harness build")
        return
    output.table("on this machine", [(r["name"], r["id"][7:19], r["size"]) for r in found], ("image", "id", "size"))
    if pushed:
        output.out("")
        output.table("pushed", [(p.name, p.digest, p.time) for p in pushed], ("image", "digest", "when"))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 50_000 else f"{count / 1e3:.1f} kB"
