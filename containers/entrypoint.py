"""PID 1 of both images: `train` and `serve` are supervised, `prepare` and anything else is exec'd.

    python -m containers.entrypoint train     run_clm under SageMaker's training contract
    python -m containers.entrypoint serve     DJL Serving with serve/model.py on the model directory
    python -m containers.entrypoint prepare   compile an artifact's graphs (serve/prepare.py)
    python -m containers.entrypoint bash      any other command, as `docker run IMAGE bash` should

The stock Deep Learning Container entrypoints lose SIGTERM (their shell does not forward it), which is why ours
replaces them; containers/README.md compares the two. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from containers import contract, drain, health, secretsmanager, timeouts
from containers.artifact import ArtifactError, check_model_directory
from containers.contract import ContractError, Paths, Resources
from containers.supervise import Supervisor

PROGRAM = Path(__file__).resolve().parent.parent  # holds containers/, train/ and serve/
EXIT_CONTRACT = 3  # the request or the directories do not fit the contract
WAITING = 128  # requests that wait in the handler for a slot, beside those that have one
MOST_IN_A_BATCH = 900  # djl_python reads a request's number from three digits (inputs.py, get_batches)
EXIT_RESTART = 77  # DJL Serving asks to be started again, as in the stock entrypoint
# Device cpu only: huge pages for tensors, and freed memory kept rather than given back and faulted in again.
# Training steps take a sixth less time with it (docs/limits.md).
CPU_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=68719476736:"
    "glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=67108864"
)
# Device cpu only: how long a thread that has nothing to do turns before it sleeps, in turns of libgomp's loop. By
# default it turns for milliseconds at each barrier, on a core that another process would use. With other processes on
# the machine a loop of small matrix products took 1.1 to 4.3 s by default, 0.4 s with 10,000 turns and 0.05 to 0.08 s
# with 1,000 (benchmarks/busy.py, docs/internals/training-speed.md); a serving step 4 s instead of 0.17 s.
CPU_ENVIRONMENT = {"GLIBC_TUNABLES": CPU_TUNABLES, "GOMP_SPINCOUNT": "1000"}
DNS_WAIT = 15 * 60  # seconds; names of a job's hosts may resolve late: SageMaker's training toolkit waits as long
TRAIN_KILL_AFTER = contract.TRAIN_STOP_WAIT - 10  # the rest is for the log and the failure file
SERVE_DRAIN = contract.SERVE_STOP_WAIT - 8  # requests in progress have this long before the server gets TERM
SERVE_KILL_AFTER = 4


def train(paths: Paths) -> int:
    """Run the trainer as a child, forward signals to its whole process group, leave the failure file."""
    supervisor = Supervisor(TRAIN_KILL_AFTER)
    try:
        job = contract.read_training_input(paths)
        argv = contract.training_arguments(paths, job)
        secrets = secretsmanager.fetch(os.environ)
        wait_for_hosts(job.resources, DNS_WAIT)
    except ContractError as error:
        contract.write_failure(paths, f"ClientError: {error}")
        print(f"entrypoint: {error}", file=sys.stderr, flush=True)
        return EXIT_CONTRACT
    env = training_environment({**os.environ, **secrets})
    hidden = secretsmanager.hidden(secrets, credentials_in(env), credentials_in(job.hyperparameters))
    command = [sys.executable, "-u", "-m", "train.run_clm", *argv]
    print("entrypoint:", secretsmanager.hide(" ".join(command).encode(), hidden).decode(), flush=True)
    code, tail = supervisor.run(command, PROGRAM, env, hidden)
    if code not in (0, contract.EXIT_TERMINATED, contract.EXIT_INTERRUPTED) and not contract.read_failure(paths):
        contract.write_failure(paths, failure_reason(tail, code))
    _hide_in_failure(paths, hidden)
    return code


def credentials_in(values: Mapping[str, str]) -> dict[str, str]:
    """The values that no log may show, by their names. Our own run files hold none; other clients' requests may."""
    return {name: value for name, value in values.items() if contract.is_credential(name)}


def _hide_in_failure(paths: Paths, secrets: tuple[bytes, ...]) -> None:
    """The trainer writes the failure file itself, and an exception's text may hold what it was given."""
    if secrets and (text := contract.read_failure(paths)):
        contract.write_failure(paths, secretsmanager.hide(text.encode(), secrets).decode())


def training_environment(env: dict[str, str]) -> dict[str, str]:
    """What the trainer needs besides the request's own environment, which wins. Neuron's part: train/launch.py."""
    return {**CPU_ENVIRONMENT, **env} if env.get(contract.DEVICE_ENV) == "cpu" else env


def wait_for_hosts(resources: Resources, wait: float) -> None:
    """Until the names of all hosts of the job resolve. Raises ContractError naming those that do not in `wait` s.

    The own one too, as SageMaker's toolkit does (entry_point.py): the first host opens its port at it. A host that is
    alone needs no name.
    """
    missing = list(resources.ordered_hosts) if len(resources.hosts) > 1 else []
    deadline = time.monotonic() + wait
    while missing:
        missing = [host for host in missing if not _resolves(host)]
        if missing and time.monotonic() > deadline:
            raise ContractError(f"after {wait:.0f} s these hosts have no address: {', '.join(missing)}")
        if missing:
            print(f"entrypoint: waiting for {', '.join(missing)} to resolve", flush=True)
            time.sleep(min(2.0, wait / 4))


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


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


def serve(paths: Paths) -> int:
    """Run DJL Serving on the model directory, which is read-only; on TERM what is in progress is answered first."""
    scratch = Path(tempfile.mkdtemp(prefix="djl-"))
    # DJL Serving itself cuts what is in progress on TERM (docs/decisions/003): TERM waits until the handler is idle.
    # It says Healthy when the handler hangs or has died (002): the container then ends, for SageMaker to replace.
    supervisor = Supervisor(SERVE_KILL_AFTER, drain.Drain(scratch, SERVE_DRAIN), health.Watch(scratch))
    try:
        if os.environ.get("HF_MODEL_ID"):
            # DJL would load it beside the directory, and answer every request that names none of the two with 400.
            raise ContractError("HF_MODEL_ID is set; the model is the one in the model directory: unset it")
        check_model_directory(paths.model)
    except (ArtifactError, ContractError) as error:
        print(f"entrypoint: {error}", file=sys.stderr, flush=True)
        return EXIT_CONTRACT
    config = scratch / "config.properties"
    config.write_text(serving_config(paths, contract.serving_port()), encoding="utf-8")
    env = serving_environment(dict(os.environ), scratch)
    code = EXIT_RESTART
    while code == EXIT_RESTART and not supervisor.stopping:
        code, _ = supervisor.run(["djl-serving", "-f", str(config)], scratch, env)
        for pulse in scratch.glob("pulse-*"):
            pulse.unlink()
    if why := health.why_not_started(scratch):
        # DJL's own lines about it are hundreds, most of them Java's; the last is what people and FailureReason see.
        print(f"entrypoint: the model cannot be served: {why}", file=sys.stderr, flush=True)
    return code


def serving_config(paths: Paths, port: int) -> str:
    """config.properties: only the addresses and which directory is the model; all else is environment."""
    # An endpoint listens on every interface of its container, whatever port it is given (the image's label
    # accept-bind-to-port); the executors' processes on loopback only.
    host = "127.0.0.1" if os.environ.get(contract.LOOPBACK_ENV) else "0.0.0.0"  # noqa: S104
    return (
        f"inference_address=http://{host}:{port}\n"
        f"management_address=http://{host}:{port}\n"
        f"chunked_read_timeout={timeouts.chunked_read(os.environ)}\n"
        f"load_models=model::Python:{serving_device(os.environ)}=file://{paths.model}\n"
    )


def serving_device(env: Mapping[str, str]) -> str:
    """Where DJL loads the model: on all that is there, or from the first of the cores that the container was given.

    On Neuron DJL sets NEURON_RT_VISIBLE_CORES anew for its worker: as many cores as share the model, from the number
    of the device on (engines/python, Connection.java). With `*` that is from core 0, perhaps another container's.
    """
    cores = env.get("NEURON_RT_VISIBLE_CORES", "")
    if not cores or env.get(contract.DEVICE_ENV) == "cpu":
        return "*"
    return f"nc{cores.partition(',')[0].partition('-')[0]}"


def serving_environment(env: dict[str, str], scratch: Path) -> dict[str, str]:
    """What DJL Serving needs beside the request's own environment, which wins where the handler allows it."""
    on_cpu = env.get(contract.DEVICE_ENV) == "cpu"
    replicas = timeouts.whole(env, "OPTION_REPLICAS", 1) if on_cpu else 1
    batch = str(min(timeouts.whole(env, "OPTION_MAX_BATCH_SIZE", 32) + WAITING, MOST_IN_A_BATCH))
    defaults = {
        "OPTION_ENGINE": "Python",
        "OPTION_ENTRYPOINT": str(PROGRAM / "serve" / "model.py"),
        "PYTHON_EXECUTABLE": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROGRAM), env.get("PYTHONPATH", "")])),
        "MODEL_SERVER_HOME": str(scratch),
        "DJL_CACHE_DIR": str(scratch / "cache"),
        "DJL_OFFLINE": "true",
        "OPT_OUT_TRACKING": "true",
    }
    if env.get(contract.DEVICE_ENV):
        defaults["OPTION_SERVE_ENGINE"] = env[contract.DEVICE_ENV]
    if on_cpu:
        # DJL's launcher sets 1 where it is unset, which would leave every other core idle.
        defaults["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // replicas))
        defaults |= CPU_ENVIRONMENT
    # The worker's socket is <tmpdir>/djl_sock.19000 for every server: two on one host need two directories.
    # Each reply occupies a thread of Java's common pool, which has one fewer than there are cores (decision 002).
    threads = replicas * int(batch) + 32
    options = [f"-Djava.io.tmpdir={scratch}", f"-Djava.util.concurrent.ForkJoinPool.common.parallelism={threads}"]
    java = " ".join(filter(None, [env.get("JAVA_OPTS", ""), *options]))
    own = {
        "PYTHONPATH": defaults["PYTHONPATH"],
        "JAVA_OPTS": java,
        drain.FOLDER_ENV: str(scratch),
        # serve/model.py speaks this protocol and no other. Where nothing is set, a config.json beside
        # SERVING_FEATURES makes DJL choose a rolling batch of its own, and every request hangs at /ping 200.
        "OPTION_ROLLING_BATCH": "custom",
        # The handler itself keeps the queue, where a deadline runs and the shortest come first.
        "OPTION_MAX_ROLLING_BATCH_SIZE": batch,
        # One engine holds the model; DJL would start one worker a processor. On Neuron it is one a group of cores.
        # The port opens when the model is loaded, not before: /ping would be 200 at once.
        "SERVING_WAIT_MODEL_LOADING": "true",
        "SERVING_MIN_WORKERS": str(replicas),
        "SERVING_MAX_WORKERS": str(replicas),
        **timeouts.environment(env),
    }
    return {**defaults, **env, **own}


def prepare_command(paths: Paths, arguments: list[str]) -> list[str]:
    """serve/prepare.py; without arguments from the channel `model`, where there is one, into the model directory."""
    if not arguments:
        channel = paths.channel("model")
        arguments = [str(channel if channel.is_dir() else paths.model), str(paths.model)]
    return [sys.executable, "-m", "serve.prepare", *arguments]


def with_secrets(paths: Paths, command: list[str]) -> int:
    """Run any other command where secrets are to be had: supervised, because its output must not show them."""
    supervisor = Supervisor(TRAIN_KILL_AFTER)
    try:
        secrets = secretsmanager.fetch(os.environ)
    except ContractError as error:
        contract.write_failure(paths, f"ClientError: {error}")
        print(f"entrypoint: {error}", file=sys.stderr, flush=True)
        return EXIT_CONTRACT
    code, _ = supervisor.run(command, Path.cwd(), {**os.environ, **secrets}, secretsmanager.hidden(secrets))
    _hide_in_failure(paths, secretsmanager.hidden(secrets))
    return code


def main(argv: list[str]) -> int:
    paths = Paths.from_environment()
    if argv == ["train"]:
        return train(paths)
    if argv == ["serve"]:
        return serve(paths)
    if not argv:
        print("usage: entrypoint train | serve | prepare | COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    if argv[0] == "prepare":
        argv = prepare_command(paths, argv[1:])
    if secretsmanager.wanted(os.environ):
        return with_secrets(paths, argv)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 (no shell, on purpose)
    except OSError as error:
        print(f"entrypoint: {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
