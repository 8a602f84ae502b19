"""The local SageMaker as a process: `python -m harness.local.server STATE`; started by `harness local up`."""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import signal
import sys
import time
import traceback as tracebacks
from contextlib import suppress
from pathlib import Path

from containers import contract
from harness import files
from harness.errors import HarnessError
from harness.estimate import spend
from harness.local import control
from harness.local.store.objects import ObjectStore

ACCOUNT = "000000000000"
THREADS = 48  # each invocation holds one until its container has answered
LONGEST_STOP = contract.TRAIN_STOP_WAIT + 60  # seconds: a job's TERM and its upload


def main(words: list[str]) -> int:
    """Serve until TERM; then containers get their time."""
    parser = argparse.ArgumentParser(prog="python -m harness.local.server")
    parser.add_argument("state", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--region", default="us-west-2")
    parser.add_argument("--executor", default="process")
    parser.add_argument("--objects-in-s3", action="store_true")
    args = parser.parse_args(words)
    control.private(args.state)
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
    if not args.objects_in_s3:
        _forget_aws_settings()
    # Read by moto when it is imported: whose account, and path-style addresses whatever the host is called.
    os.environ.update(MOTO_ACCOUNT_ID=ACCOUNT, S3_IGNORE_SUBDOMAIN_BUCKETNAME="true", MOTO_DISABLE_GLOBAL_CORS="true")
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 20)  # larger parts of uploads wait on the disk
    from cheroot import wsgi

    from harness.assets import djl
    from harness.local import moto_backends
    from harness.local.api import hosting, jobs, schedules
    from harness.local.api.front import MAX_BODY, Access, Front
    from harness.local.service import Service
    from harness.paths import CACHE

    roles = moto_backends.Roles(ACCOUNT)
    roles.ensure("local")
    roles.ensure("local-expiry", spend.trust_policy(ACCOUNT))
    store, role_exists = (_s3_store(args), _any_role) if args.objects_in_s3 else (_shared_store(args), roles.exists)
    launchers: dict[str, tuple[Path, ...]] = {}

    def launcher() -> tuple[Path, ...]:  # looked for when the first endpoint starts: jobs need none
        if "djl" not in launchers and args.executor == "process":
            launchers["djl"] = (djl.ensure(CACHE, lambda text: print(text, flush=True)),)  # noqa: T201
        return launchers.get("djl", ())

    service = Service(
        args.state,
        store,
        moto_backends.MotoTelemetry(ACCOUNT),
        account=ACCOUNT,
        executor=args.executor,
        launchers=launcher,
        role_exists=role_exists,
        environment=lambda region: _environment(args, int(server.bind_addr[1]), region),
    )
    keys = control.key_pair(args.state)
    access = Access(keys.access_key_id, keys.secret_access_key, moto_backends.assumed_secret(ACCOUNT))
    front = Front(service, store, moto_backends.application(), access)
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
    server.prepare()  # jobs that settle starts again are told the port; requests wait until serve()
    jobs.settle(service)
    hosting.settle(service)
    schedules.Timer(service).start()
    port = int(server.bind_addr[1])
    found = {"pid": os.getpid(), "port": port, "region": args.region, "account": ACCOUNT, "executor": args.executor}
    files.write_json(args.state / control.SERVER, {**found, "objects_in_s3": args.objects_in_s3})
    print(f"{time.strftime('%FT%TZ', time.gmtime())} serving on 127.0.0.1:{port}", flush=True)  # noqa: T201
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal that started it is not meant for it
    gc.freeze()  # modules and models stay; a collection after a large request need not look at them
    with suppress(SystemExit):
        server.serve()
    service.close(LONGEST_STOP)
    server.stop()
    (args.state / control.SERVER).unlink(missing_ok=True)
    print(f"{time.strftime('%FT%TZ', time.gmtime())} ended", flush=True)  # noqa: T201
    return 0


def _forget_aws_settings() -> None:
    """Nothing here goes to AWS, but moto asks botocore: a profile that is not there must not matter."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)


def _environment(args: argparse.Namespace, port: int, region: str) -> dict[str, str]:
    """What brings a job's own AWS calls here. From a container of Docker's this address is not to be reached."""
    if args.executor != "process":
        return {}
    return control.Server(
        args.state, os.getpid(), port, region, ACCOUNT, keys=control.key_pair(args.state)
    ).environment()


def _log(msg: str = "", level: int = 20, traceback: bool = False) -> None:
    """What the HTTP server has to say (its own signature); a client that has left is no news."""
    if isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
        return
    sys.stderr.write(f"{msg}\n{tracebacks.format_exc() if traceback else ''}")
    sys.stderr.flush()


def _shared_store(args: argparse.Namespace) -> ObjectStore:
    """Objects as files below the state directory, shown to every S3 client by moto."""
    from harness.local.store.moto_s3 import SharedStore
    from harness.spec.profile import LOCAL

    store = SharedStore(args.state, ACCOUNT)
    store.load(args.region)
    if LOCAL.bucket not in store.backend.buckets:
        store.backend.create_bucket(LOCAL.bucket, args.region)
        store.after_request(LOCAL.bucket, "")
    return store


def _s3_store(args: argparse.Namespace) -> ObjectStore:
    """AWS's S3, as the AWS profile says; a copy of what jobs read is below the state directory."""
    from harness.aws.session import Aws
    from harness.aws.transfer import Transfer
    from harness.local.store.s3 import S3Store
    from harness.record import Record
    from harness.spec import profile as profiles

    aws = Aws(profiles.load(region=args.region))
    return S3Store(args.state / "s3", Transfer(aws, Record("uploads", args.state)))


def _any_role(_arn: str) -> bool:
    """Containers on a Neuron host have the host's role, whatever a request names."""
    return True


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking thousands of modules apart would be 0.2 s for which the command that stops it waits
