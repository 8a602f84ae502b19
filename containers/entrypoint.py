"""PID 1 of both images: `train` is supervised, `serve` becomes DJL Serving, anything else is exec'd.

    python -m containers.entrypoint train     run_clm under SageMaker's training contract
    python -m containers.entrypoint serve     DJL Serving with serve/model.py on the model directory
    python -m containers.entrypoint bash      any other command, as `docker run IMAGE bash` should

The stock Deep Learning Container entrypoints lose SIGTERM (their shell does not forward it), which is why ours
replaces them. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import FrameType

from containers import contract
from containers.artifact import ArtifactError, check_model_directory
from containers.contract import ContractError, Paths

PROGRAM = Path(__file__).resolve().parent.parent  # holds containers/, train/ and serve/
EXIT_CONTRACT = 3  # the request or the directories do not fit the contract
# Device cpu only: huge pages for tensors, and freed memory kept rather than given back and faulted in again.
# Training steps take a sixth less time with it (docs/status.md).
CPU_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=68719476736:"
    "glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=67108864"
)


def train(paths: Paths) -> int:
    """Run the trainer as a child, forward signals to its whole process group, leave the failure file."""
    try:
        argv = contract.training_arguments(paths, contract.read_training_input(paths))
    except ContractError as error:
        contract.write_failure(paths, f"ClientError: {error}")
        print(f"entrypoint: {error}", file=sys.stderr, flush=True)
        return EXIT_CONTRACT
    command = [sys.executable, "-u", "-m", "train.run_clm", *argv]
    print("entrypoint:", " ".join(command), flush=True)
    code, tail = _supervise(command)
    if code not in (0, contract.EXIT_TERMINATED, contract.EXIT_INTERRUPTED) and not contract.read_failure(paths):
        contract.write_failure(paths, failure_reason(tail, code))
    return code


def _supervise(command: list[str]) -> tuple[int, list[str]]:
    """Run `command`, copy its output line by line, return its exit code (128 + n for signal n) and last lines."""
    env = dict(os.environ)
    if env.get(contract.DEVICE_ENV) == "cpu":
        env.setdefault("GLIBC_TUNABLES", CPU_TUNABLES)
    child = subprocess.Popen(
        command,
        cwd=PROGRAM,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a process group of its own, so that every descendant gets the signal
    )

    def forward(signum: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it ended in this moment
            os.killpg(child.pid, signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, forward)
    tail: deque[str] = deque(maxlen=60)
    assert child.stdout is not None
    for raw in child.stdout:
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        tail.append(raw.decode(errors="replace").rstrip())
    code = child.wait()
    return (code if code >= 0 else 128 - code), list(tail)


def failure_reason(lines: list[str], code: int) -> str:
    """The last useful 1,024 characters: from the last traceback on, else the last lines that say something.

    SageMaker shows the *first* 1,024 characters of the failure file, so the exception itself comes first.
    """
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback ")), default=None)
    useful = [line for line in (lines[start:] if start is not None else lines[-15:]) if line.strip()]
    headline = f"AlgorithmError: {useful[-1].strip()}" if useful else "AlgorithmError: no output"
    if code == 137:
        headline = "AlgorithmError: killed (SIGKILL), most often out of memory"
    text = "\n".join([f"{headline}, exit code {code}", *useful])
    return text[: contract.MAX_FAILURE_REASON]


def serve(paths: Paths) -> int:  # returns on failure only
    """Become DJL Serving (exec, so that SIGTERM reaches it) on the model directory, which is read-only."""
    try:
        check_model_directory(paths.model)
    except ArtifactError as error:
        print(f"entrypoint: {error}", file=sys.stderr, flush=True)
        return EXIT_CONTRACT
    scratch = Path(tempfile.mkdtemp(prefix="djl-"))
    config = scratch / "config.properties"
    config.write_text(serving_config(paths, contract.serving_port()), encoding="utf-8")
    env = serving_environment(dict(os.environ), scratch)
    os.chdir(scratch)
    os.execvpe("djl-serving", ["djl-serving", "-f", str(config)], env)  # noqa: S606 (no shell, on purpose)
    raise AssertionError("exec returned")


def serving_config(paths: Paths, port: int) -> str:
    """config.properties: only the addresses and which directory is the model; all else is environment."""
    # An endpoint listens on every interface of its container; the executors' processes on loopback only.
    host = "127.0.0.1" if os.environ.get(contract.PORT_ENV) else "0.0.0.0"  # noqa: S104
    return (
        f"inference_address=http://{host}:{port}\n"
        f"management_address=http://{host}:{port}\n"
        f"load_models=model::Python:*=file://{paths.model}\n"
    )


def serving_environment(env: dict[str, str], scratch: Path) -> dict[str, str]:
    """What DJL Serving needs besides the request's own environment, which wins."""
    defaults = {
        "OPTION_ENGINE": "Python",
        "OPTION_ENTRYPOINT": str(PROGRAM / "serve" / "model.py"),
        # Without this a config.json beside SERVING_FEATURES makes DJL choose a rolling batch of its own and
        # every request hangs while /ping stays healthy.
        "OPTION_ROLLING_BATCH": "disable",
        "PYTHON_EXECUTABLE": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROGRAM), env.get("PYTHONPATH", "")])),
        "MODEL_SERVER_HOME": str(scratch),
        "DJL_CACHE_DIR": str(scratch / "cache"),
        "DJL_OFFLINE": "true",
        "OPT_OUT_TRACKING": "true",
        # One engine holds the model; DJL would start one worker a processor.
        "SERVING_MIN_WORKERS": "1",
        "SERVING_MAX_WORKERS": "1",
    }
    if env.get(contract.DEVICE_ENV):
        defaults["OPTION_SERVE_ENGINE"] = env[contract.DEVICE_ENV]
    if env.get(contract.DEVICE_ENV) == "cpu":
        # DJL's launcher sets 1 where it is unset, which would leave every other core idle.
        defaults["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        defaults["GLIBC_TUNABLES"] = CPU_TUNABLES
    # The worker's socket is <tmpdir>/djl_sock.19000 for every server: two on one host need two directories.
    temporary = f"{env.get('JAVA_OPTS', '')} -Djava.io.tmpdir={scratch}".strip()
    return {**defaults, **env, "PYTHONPATH": defaults["PYTHONPATH"], "JAVA_OPTS": temporary}


def main(argv: list[str]) -> int:
    paths = Paths.from_environment()
    if argv == ["train"]:
        return train(paths)
    if argv == ["serve"]:
        return serve(paths)
    if not argv:
        print("usage: entrypoint train | serve | COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        print(f"entrypoint: {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
