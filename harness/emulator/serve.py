"""The local SageMaker as a process: `python -m harness.emulator.serve STATE`; started by `harness local up`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
import traceback as tracebacks
from contextlib import suppress
from pathlib import Path
from typing import Any

from containers import contract
from harness.emulator import control
from harness.errors import HarnessError

ACCOUNT = "000000000000"
THREADS = 48  # each invocation holds one until its container has answered
LONGEST_STOP = contract.TRAIN_STOP_WAIT + 60  # seconds: a job's TERM and its upload


def main(words: list[str]) -> int:
    """Serve until TERM; then containers get their time."""
    parser = argparse.ArgumentParser(prog="python -m harness.emulator.serve")
    parser.add_argument("state", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--region", default="us-west-2")
    parser.add_argument("--executor", default="process")
    args = parser.parse_args(words)
    args.state.mkdir(parents=True, exist_ok=True)
    args.state = args.state.resolve()
    with (args.state / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"another process serves {args.state}\n")
            return 7
        try:
            return _serve(args)
        except HarnessError as error:
            for problem in error.problems:
                sys.stderr.write("\n".join(problem.lines()) + "\n")
            return error.exit_code


def _serve(args: argparse.Namespace) -> int:
    # Read by moto when it is imported: whose account, and path-style addresses whatever the host is called.
    os.environ.update(MOTO_ACCOUNT_ID=ACCOUNT, S3_IGNORE_SUBDOMAIN_BUCKETNAME="true", MOTO_DISABLE_GLOBAL_CORS="true")
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 20)  # larger parts of uploads wait on the disk
    from cheroot import wsgi

    from harness.assets import djl
    from harness.emulator import motoside
    from harness.emulator.app import MAX_BODY, Front
    from harness.emulator.objects import SharedStore
    from harness.emulator.service import Service
    from harness.paths import CACHE
    from harness.profile import LOCAL

    store = SharedStore(args.state, ACCOUNT)
    store.load(args.region)
    if LOCAL.bucket not in store.backend.buckets:
        store.backend.create_bucket(LOCAL.bucket, args.region)
        store.after_request(LOCAL.bucket, "")
    roles = motoside.Roles(ACCOUNT)
    roles.ensure("local")
    launchers: dict[str, tuple[Path, ...]] = {}

    def launcher() -> tuple[Path, ...]:  # looked for when the first endpoint starts: jobs need none
        if "djl" not in launchers and args.executor == "process":
            launchers["djl"] = (djl.ensure(CACHE, lambda text: print(text, flush=True)),)  # noqa: T201
        return launchers.get("djl", ())

    service = Service(
        args.state,
        store,
        motoside.MotoTelemetry(ACCOUNT),
        account=ACCOUNT,
        executor=args.executor,
        launchers=launcher,
        role_exists=roles.exists,
        environment=lambda region: _environment(args, int(server.bind_addr[1]), region),
    )
    front = Front(service, store, motoside.application(), {"127.0.0.1", "localhost"})
    server = wsgi.Server(
        ("127.0.0.1", args.port),
        front,
        numthreads=THREADS,
        server_name="local-sagemaker",
        request_queue_size=128,
        timeout=120,  # seconds that a client may keep an idle connection
    )
    server.keep_alive_conn_limit = 512
    server.max_request_body_size = MAX_BODY
    server.error_log = _log  # type: ignore[method-assign]
    server.prepare()  # jobs that settle() starts again are told the port; requests wait until serve()
    service.settle()
    port = int(server.bind_addr[1])
    found = {"pid": os.getpid(), "port": port, "region": args.region, "account": ACCOUNT, "executor": args.executor}
    _write_json(args.state / control.SERVER, found)
    print(f"{time.strftime('%FT%TZ', time.gmtime())} serving on 127.0.0.1:{port}", flush=True)  # noqa: T201
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal that started it is not meant for it
    with suppress(SystemExit):
        server.serve()
    service.close(LONGEST_STOP)
    server.stop()
    (args.state / control.SERVER).unlink(missing_ok=True)
    print(f"{time.strftime('%FT%TZ', time.gmtime())} ended", flush=True)  # noqa: T201
    return 0


def _environment(args: argparse.Namespace, port: int, region: str) -> dict[str, str]:
    """What brings a job's own AWS calls here. From a container of Docker's this address is not to be reached."""
    if args.executor != "process":
        return {}
    return control.Server(args.state, os.getpid(), port, region, ACCOUNT).environment()


def _log(msg: str = "", level: int = 20, traceback: bool = False) -> None:
    """What the HTTP server has to say (its own signature); a client that has left is no news."""
    if isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
        return
    sys.stderr.write(f"{msg}\n{tracebacks.format_exc() if traceback else ''}")
    sys.stderr.flush()


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
