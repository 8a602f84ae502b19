"""The local SageMaker on executor docker: jobs and endpoints in the containers of the images that requests name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import shell
from harness.images.build import DEBIAN_IMAGE
from harness.local import control
from harness.local.control import Server
from tests.chain.conftest import write_tiny_run
from tests.emulator.conftest import client, start
from tests.emulator.requests import Requests
from tests.emulator.test_faults import STEPS
from tests.images.conftest import HARNESS, ROOT, docker, left_over
from tests.images.ecr import Ecr

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
WITHIN = 180  # seconds for a job or an endpoint of the tiny model
STATE = "r=json.loads((B/'input/config/resourceconfig.json').read_text())\n"


@pytest.fixture
def aws(built: dict[str, str], tmp_path: Path) -> Iterator[Requests]:
    """A server of its own; after the test nothing of its is left."""
    made = using(tmp_path / "state", built)
    yield made
    made.close()
    control.down(tmp_path / "state")
    assert "Traceback" not in (tmp_path / "state" / "server.log").read_text()
    assert left_over() == []


def using(state: Path, built: dict[str, str]) -> Requests:
    return Requests(start(state, "docker"), client, built)


def crash(server: Server) -> None:
    os.kill(server.pid, signal.SIGKILL)
    while control._lives(server.pid):
        time.sleep(0.02)
    shell.reap()


def fault(aws: Requests, kind: str, **given: Any) -> None:
    control.faults(aws.server, "POST", {"kind": kind, **given})


def train_tiny(aws: Requests, model: Path, name: str, steps: int) -> dict[str, Any]:
    """Uploads, and CreateTrainingJob of the image's own `train` on the tiny model."""
    for path in model.iterdir():
        aws.s3.upload_file(str(path), "local", f"{name}/model/{path.name}")
    rows = "\n".join(json.dumps({"prompt": f"t{i} red: warm?", "completion": "Yes"}) for i in range(64))
    aws.s3.put_object(Bucket="local", Key=f"{name}/train/train.jsonl", Body=rows.encode())
    channels = [
        {
            "ChannelName": channel,
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://local/{name}/{channel}/"}},
        }
        for channel in ("model", "train")
    ]
    algorithm = {
        "TrainingImage": aws.images["train"],
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=(\S+)"}],
    }
    hyperparameters = {"block_size": "24", "max_steps": str(steps), "logging_steps": "5", "save_steps": "10"}
    return aws.job(
        name,
        AlgorithmSpecification=algorithm,
        HyperParameters={**hyperparameters, "report_to": "none", "disable_tqdm": "true"},
        InputDataConfig=channels,
        Environment=None,
        EnableNetworkIsolation=True,
        CheckpointConfig={"S3Uri": f"s3://local/{name}/checkpoints"},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
    )


def keys(aws: Requests, prefix: str) -> list[str]:
    return [o["Key"] for o in aws.s3.list_objects_v2(Bucket="local", Prefix=prefix).get("Contents", [])]


def images_of(name: str) -> list[str]:
    """The images of the containers whose name contains `name`, running now."""
    label = "NEURON_HARNESS_CONTAINER"
    shown = docker("ps", "--format", '{{.Image}} {{.Label "' + label + '"}}').splitlines()
    return [line.split()[0] for line in shown if name in line.split()[-1]]


@pytest.mark.left_behind("container", "success", "the local SageMaker")
def test_a_job_and_then_an_endpoint_with_its_artifact(aws: Requests, tiny_model: Path) -> None:
    aws.sm.create_training_job(**train_tiny(aws, tiny_model, "tiny", 20))
    aws.until("tiny", lambda d: d["SecondaryStatus"] == "Training", WITHIN)
    assert images_of("tiny") == [aws.images["train"]]
    shown = aws.ended("tiny", WITHIN)
    assert shown["TrainingJobStatus"] == "Completed", aws.logged("tiny")
    assert any("step=20/20" in line for line in next(iter(aws.logged("tiny").values())))
    assert shown["FinalMetricDataList"][0]["MetricName"] == "loss"
    assert keys(aws, "out/tiny/") == ["out/tiny/output/model.tar.gz", "out/tiny/output/output.tar.gz"]
    assert any("/checkpoint-10/" in key for key in keys(aws, "tiny/checkpoints/"))

    artifact = {"ModelDataUrl": shown["ModelArtifacts"]["S3ModelArtifacts"]}
    aws.config("tiny", data=artifact, OPTION_N_POSITIONS="120", OPTION_MAX_BATCH_SIZE="4")
    aws.sm.create_endpoint(EndpointName="tiny", EndpointConfigName="tiny")
    assert aws.settled("tiny", WITHIN)["EndpointStatus"] == "InService"
    assert images_of("tiny") == [aws.images["serve"]]
    body = {"inputs": "t1 red: warm?", "parameters": {"max_new_tokens": 8}}
    asked = {"EndpointName": "tiny", "ContentType": "application/json"}
    answer = json.loads(aws.runtime.invoke_endpoint(**asked, Body=json.dumps(body))["Body"].read())
    assert "generated_text" in json.dumps(answer)
    stream = aws.runtime.invoke_endpoint_with_response_stream(**asked, Body=json.dumps({**body, "stream": True}))
    parts = [event["PayloadPart"]["Bytes"] for event in stream["Body"]]
    assert len(parts) > 1 and b"generated_text" in b"".join(parts)
    container = docker("ps", "--quiet", "--filter", "label=NEURON_HARNESS_CONTAINER").strip()
    assert "Read-only file system" in docker("exec", container, "touch", "/opt/ml/model/x", check=False)
    logged = aws.logs.filter_log_events(logGroupName="/aws/sagemaker/Endpoints/tiny")["events"]
    assert logged, "what the server writes arrives in CloudWatch Logs"
    aws.delete("tiny")
    assert left_over() == []


def test_stop_exit_code_failure_file_and_a_missing_image(aws: Requests) -> None:
    saves = "signal.signal(signal.SIGTERM, lambda *_: ((B/'checkpoints/c').write_text('c'), sys.exit(143)))\n"
    stopped = {"CheckpointConfig": {"S3Uri": "s3://local/stopped"}}
    aws.sm.create_training_job(
        **aws.job("stopped", saves + "print('waiting', flush=True)\ntime.sleep(100)", **stopped)
    )
    aws.until("stopped", lambda _: "waiting" in str(aws.logs_or_nothing("stopped")), WITHIN)
    aws.sm.stop_training_job(TrainingJobName="stopped")
    assert aws.ended("stopped")["TrainingJobStatus"] == "Stopped"
    assert keys(aws, "stopped/") == ["stopped/c"]
    assert aws.run("code", "print('bad'); sys.exit(7)")["FailureReason"] == "AlgorithmError: exit code 7"
    told = aws.run("told", "(B/'output/failure').write_text('no such row'); sys.exit(1)")
    assert told["FailureReason"] == "no such row"
    aws.images["train"] = "127.0.0.1:9/none:1"
    reason = aws.run("imageless")["FailureReason"]
    assert "no image 127.0.0.1:9/none:1 on this machine, and none to pull" in reason


def test_a_job_that_runs_out_of_memory_looks_as_in_executor_process(aws: Requests) -> None:
    fault(aws, "out-of-memory", name="oom", after=2)
    shown = aws.run("oom", STEPS)
    assert (shown["TrainingJobStatus"], shown["FailureReason"]) == ("Failed", "AlgorithmError: exit code 137")
    lines = next(iter(aws.logged("oom").values()))
    assert "step=2/4 loss=1" in lines and "step=4/4 loss=1" not in lines


HOSTS = (
    STATE
    + """
import socket
from containers import entrypoint
from containers.contract import Paths, read_training_input
me, hosts = r['current_host'], r['hosts']
began = time.time()
entrypoint.wait_for_hosts(read_training_input(Paths(B)).resources, 60)
print('waited', round(time.time() - began, 1), flush=True)
(B/'model'/f'from-{me}').write_text(me)
# Nobody ends before all have met: a host that has ended has no name any more.
if me == 'algo-1':
    s = socket.create_server(('', 23456)); s.settimeout(60)
    met = [s.accept() for _ in hosts[1:]]
    for _, address in met: print('from', address[0], flush=True)
else:
    end = time.time() + 60
    while time.time() < end:
        try: c = socket.create_connection(('algo-1', 23456), timeout=60); break
        except OSError: time.sleep(0.1)
    c.recv(1)
"""
)


@pytest.mark.left_behind("network", "success", "the local SageMaker, with the last host")
def test_three_hosts_whose_names_resolve_late(aws: Requests) -> None:
    fault(aws, "late-hosts", name="three", after=3)
    resources = {"InstanceType": "ml.trn1.32xlarge", "InstanceCount": 3, "VolumeSizeInGB": 1}
    shown = aws.run("three", HOSTS, ResourceConfig=resources)
    logged = {stream.split("/")[1].rpartition("-")[0]: lines for stream, lines in aws.logged("three").items()}
    assert shown["TrainingJobStatus"] == "Completed", logged
    assert sorted(logged) == ["algo-1", "algo-2", "algo-3"]
    assert "entrypoint: waiting for algo-2, algo-3 to resolve" in logged["algo-1"]
    assert float(next(line for line in logged["algo-1"] if line.startswith("waited")).split()[1]) > 2
    assert len([line for line in logged["algo-1"] if line.startswith("from")]) == 2
    aws.s3.download_file("local", "out/three/output/model.tar.gz", str(aws.server.state / "model.tar.gz"))
    listed = shell.run(["tar", "-tzf", aws.server.state / "model.tar.gz"], timeout=20).split()
    assert sorted(listed) == ["from-algo-1", "from-algo-2", "from-algo-3"], "one model directory a host, one artifact"
    assert left_over() == []


@pytest.mark.left_behind(("container", "network"), "failure", "the local SageMaker")
def test_a_host_that_fails_ends_the_others(aws: Requests) -> None:
    resources = {"InstanceType": "ml.trn1.32xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    code = STATE + "if r['current_host'] == 'algo-2': sys.exit(7)\ntime.sleep(100)"
    assert aws.run("one-fails", code, ResourceConfig=resources)["FailureReason"] == "AlgorithmError: exit code 7"
    assert left_over() == []


@pytest.mark.left_behind(("container", "network"), "Ctrl-C", "the local SageMaker, when the job is stopped")
def test_a_job_of_two_hosts_that_is_stopped_leaves_neither_containers_nor_network(aws: Requests) -> None:
    two = {"InstanceType": "ml.trn1.32xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    aws.sm.create_training_job(
        **aws.job("two-stopped", "print('waiting', flush=True); time.sleep(100)", ResourceConfig=two)
    )
    aws.until("two-stopped", lambda _: str(aws.logs_or_nothing("two-stopped")).count("waiting") == 2, WITHIN)
    assert len(left_over()) == 3, "two containers and their network"
    aws.sm.stop_training_job(TrainingJobName="two-stopped")
    assert aws.ended("two-stopped", WITHIN)["TrainingJobStatus"] == "Stopped"
    assert left_over() == []


SLOW = """
done = sorted(p.name for p in (B/'checkpoints').iterdir())
print('found', done, flush=True)
(B/'checkpoints'/f'step-{len(done)}').write_text('x')
if len(done) < 1: print('waiting', flush=True); time.sleep(100)
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A server's directory; whichever server serves it in the end is ended."""
    yield tmp_path / "state"
    control.down(tmp_path / "state")


@pytest.mark.left_behind(("container", "network"), "KILL", "the next local SageMaker")
def test_a_crash_of_the_server_is_found_and_settled(built: dict[str, str], tiny_model: Path, state: Path) -> None:
    aws = using(state, built)
    retried = {"RetryStrategy": {"MaximumRetryAttempts": 1}, "CheckpointConfig": {"S3Uri": "s3://local/ck-retry"}}
    two = {"InstanceType": "ml.trn1.32xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    aws.sm.create_training_job(**aws.job("retried", SLOW, **retried))
    aws.sm.create_training_job(**aws.job("lost", SLOW, ResourceConfig=two))
    serve_tiny(aws, tiny_model, "serving")
    for name in ("retried", "lost"):
        aws.until(name, lambda _, name=name: "waiting" in str(aws.logs_or_nothing(name)), 60)
    assert aws.settled("serving", WITHIN)["EndpointStatus"] == "InService"
    crash(aws.server)
    aws.close()
    assert len(left_over()) == 5, "four containers and a job's network go on without the server"

    aws = using(state, built)
    assert aws.ended("lost")["FailureReason"].startswith("InternalServerError")
    assert aws.ended("retried", 60)["TrainingJobStatus"] == "Completed"
    assert ["found ['step-0']"] in list(aws.logged("retried").values())
    assert aws.settled("serving", WITHIN)["EndpointStatus"] == "InService"
    aws.delete("serving")
    aws.close()
    assert left_over() == []


def serve_tiny(aws: Requests, model: Path, name: str) -> None:
    """An endpoint of the tiny model as it is, from uncompressed model data."""
    for path in model.iterdir():
        aws.s3.upload_file(str(path), "local", f"tiny/{path.name}")
    source = {"S3Uri": "s3://local/tiny/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    aws.config(name, data={"ModelDataSource": {"S3DataSource": source}}, OPTION_N_POSITIONS="120")
    aws.sm.create_endpoint(EndpointName=name, EndpointConfigName=name)


def test_an_endpoint_whose_pings_fail_leaves_nothing(aws: Requests, tiny_model: Path) -> None:
    fault(aws, "failing-ping", name="sick", after=5)
    serve_tiny(aws, tiny_model, "sick")
    shown = aws.settled("sick", WITHIN)
    assert (shown["EndpointStatus"], "ping health check" in shown["FailureReason"]) == ("Failed", True)
    assert left_over() == []
    aws.delete("sick")


def test_a_whole_run_on_platform_local_in_containers(built: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    folder = write_tiny_run(tiny_model, tmp_path).parent
    done = subprocess.run(
        [*HARNESS, "run", "--executor", "docker", "tiny.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HARNESS_RUNS_DIR": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after fine-tuning                100.0 %" in done.stdout
    record = next((tmp_path / "runs").glob("tiny-*"))
    request = json.loads(next((record / "requests").glob("CreateTrainingJob-*")).read_text())
    assert request["AlgorithmSpecification"]["TrainingImage"] == built["train"]
    assert "stopped the local SageMaker" in done.stderr
    assert left_over() == []


def test_an_image_that_is_not_here_is_pulled_by_its_digest(built: dict[str, str], tmp_path: Path) -> None:
    """From a registry with ECR's manners, with the credentials of the docker command line."""
    with Ecr(tmp_path) as ecr:
        ecr.repositories["small"] = {"imageTagMutability": "MUTABLE"}
        config = tmp_path / "docker"
        config.mkdir()
        login = ["docker", "--config", str(config), "login", "-u", "AWS", "--password-stdin", ecr.host]
        subprocess.run(login, input=ecr.token(), text=True, check=True, stdout=subprocess.DEVNULL)
        docker("tag", DEBIAN_IMAGE, f"{ecr.host}/small:1")
        docker("--config", str(config), "push", "--quiet", f"{ecr.host}/small:1")
        docker("image", "rm", "--no-prune", f"{ecr.host}/small:1")
        name = f"{ecr.host}/small@{ecr.manifest('small', '1')[0]}"
        assert docker("image", "ls", "--quiet", name) == ""
        server = start(tmp_path / "state", "docker", DOCKER_CONFIG=str(config))
        aws = Requests(server, client, {"train": name, "serve": name})
        words = {"ContainerEntrypoint": ["sh", "-c"], "ContainerArguments": ["echo made > /opt/ml/model/w"]}
        try:
            algorithm = {"TrainingImage": name, "TrainingInputMode": "File", **words}
            shown = aws.run("pulled", AlgorithmSpecification=algorithm)
            assert shown["TrainingJobStatus"] == "Completed", shown.get("FailureReason")
            assert keys(aws, "out/pulled/") == ["out/pulled/output/model.tar.gz"]
        finally:
            aws.close()
            control.down(server.state)
            docker("image", "rm", "--no-prune", name, check=False)
