"""`harness ui`: the local page."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli import output


def ui(
    port: Annotated[int | None, typer.Option(min=1024, max=65535, help="Instead of a free one.")] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Show runs, curves, a chat and plans as a page on this machine."""
    import webbrowser

    from harness.ui import server

    server.require()
    bound, token = server.free_port(port), server.new_token()
    address = server.address(bound, token)

    def ready() -> None:
        output.note("the page is for this machine only; Ctrl-C ends it, and runs that it has started go on")
        output.out(address)
        if open_it:
            webbrowser.open(address)

    server.serve(bound, token, ready)
