"""Start the page's server: loopback, a token, a free port."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import time
from collections.abc import Callable
from threading import Thread

from harness.errors import InvalidInput, MissingPrerequisite
from harness.paths import IN_CHECKOUT, runs_dir
from harness.ui import commands

EXTRA = "nicegui"


def require() -> None:
    """Raises MissingPrerequisite where the extra is not installed."""
    if importlib.util.find_spec(EXTRA) is None:
        hint = "make ui" if IN_CHECKOUT else "pip install 'neuron-harness[ui]'"
        raise MissingPrerequisite(f"the page needs the package {EXTRA}", "it is an optional extra", hint)


def free_port(wanted: int | None) -> int:
    """`wanted`, or one that is free. Raises InvalidInput where it is taken."""
    try:
        with socket.create_server(("127.0.0.1", wanted or 0)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InvalidInput(
            f"port {wanted}: {error.strerror or error}", hint="leave --port out for a free one"
        ) from None


def address(port: int, token: str) -> str:
    """What a browser opens."""
    return f"http://127.0.0.1:{port}/?token={token}"


def new_token() -> str:
    return secrets.token_urlsafe(24)


def _when_up(port: int, ready: Callable[[], None]) -> None:
    """Call `ready` as soon as something answers on `port`."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                break
        except OSError:
            time.sleep(0.05)
    ready()


def serve(port: int, token: str, ready: Callable[[], None]) -> None:
    """Serve until an interrupt; `ready` is called when a browser can come. Runs that were started go on."""
    # NiceGUI keeps files here if an application asks it to; ours does not.
    os.environ["NICEGUI_STORAGE_PATH"] = str(runs_dir() / commands.LOGS)
    from nicegui import app, ui

    from harness.ui import pages
    from harness.ui.guard import Guard
    from harness.ui.watch import Watch

    app.add_middleware(Guard, token=token, port=port)
    pages.install(Watch())
    Thread(target=_when_up, args=(port, ready), daemon=True).start()
    ui.run(
        host="127.0.0.1",
        port=port,
        title="harness",
        favicon="🧠",
        language="en-US",
        dark=None,
        reload=False,
        show=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
