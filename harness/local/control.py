"""`harness local`: starts, ends and asks the server of one state directory. Imports neither moto nor boto3."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import urllib3

from containers import contract
from harness import files, shell
from harness.errors import InvalidInput, NotFound, NotStarted
from harness.spec.profile import Profile

SERVER, CREDENTIALS = "server.json", "credentials.json"
ON_DEMAND = "started-on-demand"  # in the state directory: a command started it, and not `harness local up`
MEMBERS = ("pid", "port", "region", "account", "executor", "objects_in_s3")
UP_WITHIN = 60  # seconds; a second is usual, a large store or a busy machine takes longer
DOWN_WITHIN = contract.TRAIN_STOP_WAIT + 90  # its containers get the contract's time first


@dataclass(frozen=True)
class KeyPair:
    """What a server answers to: random, and readable by the owner of its state directory alone."""

    access_key_id: str
    secret_access_key: str


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    state: Path
    pid: int
    port: int
    region: str
    account: str
    executor: str = "process"
    objects_in_s3: bool = False
    """On a Neuron host with an AWS profile: what would be in s3/ is in the account's bucket."""
    keys: KeyPair = field(default_factory=lambda: KeyPair("", ""), repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answering(self, profile: Profile) -> Profile:
        """`profile` as it reaches this server instead of AWS."""
        keys = (self.keys.access_key_id, self.keys.secret_access_key)
        return replace(profile, endpoint_url=self.url, access_key=keys)

    def environment(self) -> dict[str, str]:
        """What makes every AWS client on this machine talk to it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret_access_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1"])),
        }


def key_pair(state: Path) -> KeyPair:
    """The key pair of `state`, made where it is missing. It outlives a server, and open shells with it."""
    path = state / CREDENTIALS
    try:
        return KeyPair(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        made = KeyPair(f"AKIALOCAL{secrets.token_hex(6).upper()}", secrets.token_urlsafe(30))
        files.write_json(path, asdict(made), mode=0o600)
        return made


def private(state: Path) -> None:
    """The state directory, made where it is missing, for its owner alone: who can read it can run commands."""
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)


def find(state: Path) -> Server | None:
    """The server of `state`, if it answers."""
    try:
        raw = json.loads((state / SERVER).read_text(encoding="utf-8"))
        server = Server(state, **{name: raw[name] for name in MEMBERS}, keys=key_pair(state))
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return server if health(server) is not None else None


def health(server: Server) -> dict[str, Any] | None:
    """What it says about itself; None where nothing answers, or something else."""
    try:
        answer = _ask(server, "GET", "health")
        value: dict[str, Any] = answer.json()
    except (urllib3.exceptions.HTTPError, ValueError):
        return None
    return value if answer.status == 200 else None


def _ask(server: Server, method: str, what: str, body: dict[str, Any] | None = None) -> urllib3.BaseHTTPResponse:
    """One of the server's own questions: signed with its secret, as a bearer token."""
    headers = {"Authorization": f"Bearer {server.keys.secret_access_key}"}
    return urllib3.request(
        method, f"{server.url}/harness/{what}", json=body, headers=headers, timeout=5, retries=False
    )


def job_on_disk(state: Path, region: str, name: str) -> dict[str, Any] | None:
    """DescribeTrainingJob's answer as the server of `state` has last written it; it need not be up."""
    path = state / "sagemaker" / "training-jobs" / region / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["describe"]
    except FileNotFoundError:
        return None
    return found


def up(state: Path, port: int | None, region: str, executor: str, objects_in_s3: bool = False) -> tuple[Server, bool]:
    """Start it, unless it is up already (False); `executor` is `process` if empty.

    Raises NotStarted with the end of its log, InvalidInput where the one that is up is not what is asked for.
    """
    running = find(state)
    if running is not None:
        if port not in (None, running.port):
            raise InvalidInput(
                f"it is up on port {running.port}", hint="harness local down first, or leave --port out"
            )
        if executor not in ("", running.executor):
            raise InvalidInput(f"it is up with executor {running.executor}", hint="harness local down first")
        return running, False
    private(state)
    log = state / "server.log"
    words = [sys.executable, "-m", "harness.local.server", str(state), "--region", region]
    words += ["--executor", executor or "process"]
    words += ["--objects-in-s3"] if objects_in_s3 else []
    # glibc gives each of its many threads a heap of its own, and none of them would become smaller again.
    env = {"MALLOC_ARENA_MAX": "2", **os.environ}
    child = shell.detach([*words, "--port", str(port or 0)], log, env)
    deadline = time.monotonic() + UP_WITHIN
    while time.monotonic() < deadline:
        server = find(state)
        if server is not None:
            return server, server.pid == child.pid
        if child.poll() is not None and child.returncode != 7:  # 7: another `up` was faster
            break
        time.sleep(0.05)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    child.terminate()
    raise NotStarted("the local SageMaker did not start", "; ".join(lines[-2:])[-500:], f"see {log}")


def down(state: Path) -> bool:
    """End it: jobs are stopped, endpoints' containers ended. False where none was up."""
    server = find(state)
    if server is None:
        return False
    os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_WITHIN
    while _lives(server.pid):
        if time.monotonic() > deadline:
            raise NotStarted(
                f"process {server.pid} did not end in {DOWN_WITHIN} s", hint=f"see {state / 'server.log'}"
            )
        time.sleep(0.05)
    shell.reap()
    return True


def _lives(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def keep(server: Server) -> None:
    """Whoever started it: from now on it stays until `harness local down`."""
    (server.state / ON_DEMAND).unlink(missing_ok=True)


def need(state: Path) -> Server:
    """The server of `state`. Raises NotFound saying how to start one."""
    server = find(state)
    if server is None:
        raise NotFound(f"no local SageMaker is up for {state}", hint="harness local up")
    return server


def faults(server: Server, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask for, add to, or clear the faults to come."""
    answer = _ask(server, method, "faults", body)
    value: dict[str, Any] = answer.json()
    if answer.status != 200:
        raise InvalidInput(str(value.get("message", value)))
    return value
