"""Platform `ec2` on a host that is not there: what docker is told, what is refused, where objects go.

The device tree is a directory, the engine a script that answers what it is given: nothing of it is an accelerator.
tests/images/test_fake_neuron_host.py runs real containers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from containers import contract
from containers.contract import Paths, Resources, TrainingInput
from harness.aws.session import Aws
from harness.aws.transfer import Transfer
from harness.errors import Busy, HarnessError, InvalidInput, MissingPrerequisite, NotFound, Refused
from harness.executors import docker, neuron, neuron_host
from harness.executors.docker import User
from harness.executors.spec import ContainerSpec
from harness.images import build as images
from harness.local.jobs.worker import JobWorker
from harness.local.service import Service
from harness.local.store.objects import ObjectStore
from harness.local.store.s3 import S3Store
from harness.record import Record
from harness.run import host_checks, platforms
from harness.run.platforms import Target
from harness.sagemaker.client import RunClient
from harness.spec import checks, plan as plans, runfile, stacks
from harness.spec.plan import Plan
from harness.spec.profile import LOCAL, Profile
from harness.spec.runfile import RunFile
from tests.aws.fake_host import fake_host

ENGINE = """#!/bin/sh
here=$(dirname "$0")
case "$1" in
    version) echo 27.0 ;;
    image) grep -Fx -- "$4" "$here/images" || true ;;
    ps) [ -s "$here/containers" ] && echo 1 || true ;;
    inspect) cat "$here/containers" ;;
    *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""
STACK = stacks.DEFAULT
GOOD = [images.Build(STACK).name(role) for role in images.ROLES]
STAND_INS = [images.Build(STACK, stand_in=True).name(role) for role in images.ROLES]


class Engine:
    """A `docker` on PATH that has these images and containers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "docker").write_text(ENGINE)
        (folder / "docker").chmod(0o755)
        self.has([])
        self.runs([])

    def has(self, names: list[str]) -> None:
        (self.folder / "images").write_text("\n".join(names) + "\n")

    def runs(self, containers: list[dict[str, Any]]) -> None:
        (self.folder / "containers").write_text("".join(json.dumps(c) + "\n" for c in containers))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(neuron_host.FAKE, str(tmp_path / "host"))
    return Engine(folder)


def container(name: str, host: Path, device: int, **environment: str) -> dict[str, Any]:
    """As docker inspect shows one."""
    path = f"{host}/dev/neuron{device}"
    variables = [f"{key}={value}" for key, value in environment.items()]
    return {"name": f"/{name}", "devices": [{"PathOnHost": path}], "env": variables}


def tinyllama(**compute: Any) -> tuple[RunFile, Plan]:
    run = checks.load(runfile.find(Path("tinyllama-imdb")), stacks.get(STACK))
    run = run.model_copy(update={"compute": run.compute.model_copy(update=compute)})
    return run, plans.make(run, stacks.get(STACK), LOCAL, "x-20260101-000000-abcd")


def check(record: Record, run: RunFile, plan: Plan, profile: Profile = LOCAL) -> list[str]:
    """What is said of a host that can run it."""
    said: list[str] = []
    host_checks.check(RunClient(record, profile, said.append), run, plan)
    return said


def refused(record: Record, **compute: Any) -> HarnessError:
    with pytest.raises(HarnessError) as error:
        check(record, *tinyllama(**compute))
    return error.value


def test_a_host_with_all_that_is_needed_is_taken_and_its_images_are_those_of_this_revision(
    machine: Engine, record: Record, tmp_path: Path
) -> None:
    fake_host(tmp_path / "host", 1)
    machine.has(GOOD)
    said = check(record, *tinyllama())
    assert platforms.images_of(host_checks.EXECUTOR) == {"train_image": GOOD[0], "serve_image": GOOD[1]}
    assert "a device tree without an accelerator" in said[0]
    assert "1 Neuron devices, driver 2.20.28.0; objects in files on this host" in said[0]


def test_everything_that_is_wrong_is_told_at_once(
    machine: Engine, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.folder / "docker").unlink()
    monkeypatch.setenv("PATH", str(machine.folder))
    error = refused(record, train_instance_count=2, train_instance="ml.g5.xlarge")
    assert isinstance(error, InvalidInput)
    assert [p.what for p in error.problems] == [
        'compute.train_instance = "ml.g5.xlarge" has no NeuronCores that platform ec2 knows',
        "compute.train_instance_count is 2",
        "this machine shows no Neuron device",
        "docker is not on this machine",
    ]


def test_an_old_driver_too_few_cores_and_stand_ins_alone(machine: Engine, record: Record, tmp_path: Path) -> None:
    fake_host(tmp_path / "host", 1, driver="2.31.7.0")
    machine.has(STAND_INS)
    error = refused(record, train_instance="ml.trn1.32xlarge")
    assert isinstance(error, MissingPrerequisite)
    assert [p.what for p in error.problems] == [
        "Neuron driver 2.31.7.0 does not fit",
        "the run needs 32 NeuronCores, this host has 2",
        f"no image {GOOD[0]} and no image {GOOD[1]}",
    ]
    assert error.problems[2].why == "only its CPU stand-ins are, which have no Neuron packages"
    assert error.problems[2].hint == "run: harness build (docs/images.md)"


def test_cores_that_others_have_are_told_with_their_names(machine: Engine, record: Record, tmp_path: Path) -> None:
    host = fake_host(tmp_path / "host", 1)
    machine.has(GOOD)
    machine.runs([container("notebook", host, 0)])
    error = refused(record)
    assert isinstance(error, Busy)
    assert error.problems[0].why == "by notebook"
    # Its own endpoint, left by --keep, does not stand in a run's way; another device tree's containers neither.
    machine.runs([container("x", host, 0, NEURON_HARNESS_CONTAINER="x-20260101-000000-abcd-tuned")])
    check(record, *tinyllama())
    machine.runs([container("elsewhere", tmp_path / "another", 0)])
    check(record, *tinyllama())


def test_parallelism_that_the_instance_cannot_give(machine: Engine, record: Record, tmp_path: Path) -> None:
    fake_host(tmp_path / "host", 16)
    machine.has(GOOD)
    run, plan = tinyllama()
    run = run.model_copy(update={"train": {**run.train, "tensor_parallel_size": 8}, "serve": {"tp_degree": 4}})
    with pytest.raises(InvalidInput) as error:
        check(record, run, plan)
    assert [p.what for p in error.value.problems] == [
        "tensor and pipeline parallelism are 8, ml.trn1.2xlarge has 2 NeuronCores",
        "4 NeuronCores are no part of this host that a job can have",
    ]


def training(tmp_path: Path, instance: str, **environment: str) -> ContainerSpec:
    paths = Paths(tmp_path / "ml")
    contract.write_training_input(paths, TrainingInput(resources=Resources(instance_type=instance)))
    return ContainerSpec(
        "job", "train", "train", paths.base, tmp_path / "log", environment, network=False, image="train:real"
    )


def serving(tmp_path: Path, tp_degree: int) -> ContainerSpec:
    environment = {"OPTION_TENSOR_PARALLEL_DEGREE": str(tp_degree)}
    base = tmp_path / "served"
    return ContainerSpec(
        "end", "serve", "serve", base, tmp_path / "log", environment, network=False, port=8123, image="serve:real"
    )


def test_a_container_has_as_many_cores_as_its_request_says(tmp_path: Path) -> None:
    assert neuron.needed(training(tmp_path, "ml.trn1.2xlarge")) == 2
    assert neuron.needed(training(tmp_path, "ml.trn1.32xlarge")) == 32
    assert neuron.needed(training(tmp_path, "ml.trn1.32xlarge", NEURON_RT_NUM_CORES="1")) == 1
    assert neuron.needed(training(tmp_path, "ml.trn1.2xlarge", NEURON_HARNESS_DEVICE="cpu")) == 0
    assert neuron.needed(serving(tmp_path, 2)) == 2


def pairs(words: list[str]) -> list[tuple[str, str]]:
    """(option, value) in order; the image and the command are left out."""
    return list(zip(words[0:-2:2], words[1:-2:2], strict=True))


def test_what_docker_is_told_of_a_training_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 0)
    monkeypatch.setattr("harness.executors.docker.memory_limit", lambda: 30 << 30)
    host = neuron_host.Host(("/dev/neuron0", "/dev/neuron1"), ("/dev/infiniband/uverbs0",), "2.18")
    spec = training(tmp_path, "ml.trn1.2xlarge", TRAINING_JOB_NAME="job")
    lent = neuron.with_cores(spec, host, range(2, 4))
    words = docker.arguments(lent)
    assert words[-2:] == ["train:real", "train"]
    assert pairs(words) == [
        ("--label", "NEURON_HARNESS_CONTAINER=job"),
        ("--pull", "never"),
        ("--hostname", "algo-1"),
        ("--memory", str(30 << 30)),
        ("--memory-swap", str(30 << 30)),
        ("--volume", f"{spec.base}:/opt/ml"),
        ("--network", docker.network_name("job")),
        ("--network-alias", "algo-1"),
        ("--device", "/dev/neuron1"),
        ("--shm-size", str(15 << 30)),
        ("--env", "NEURON_HARNESS_CONTAINER"),
        ("--env", "NEURON_HARNESS_OWNER"),
        ("--env", "TRAINING_JOB_NAME"),
        ("--env", "NEURON_RT_VISIBLE_CORES"),
        ("--env", "NEURON_RT_NUM_CORES"),
    ]
    ours = {"NEURON_HARNESS_CONTAINER": "job", "NEURON_HARNESS_OWNER": "job"}
    variables = {**ours, "TRAINING_JOB_NAME": "job"}
    assert docker.environment(lent) == {**variables, "NEURON_RT_VISIBLE_CORES": "2-3", "NEURON_RT_NUM_CORES": "2"}


def test_who_has_the_whole_host_has_its_network_adapters(tmp_path: Path) -> None:
    host = neuron_host.Host(tuple(f"/dev/neuron{n}" for n in range(16)), ("/dev/infiniband/uverbs0",), "2.18")
    lent = neuron.with_cores(training(tmp_path, "ml.trn1.32xlarge"), host, range(32))
    given = pairs(docker.arguments(lent))
    assert [v for k, v in given if k == "--device"] == [*host.neuron, *host.efa]
    assert ("--ulimit", "memlock=-1:-1") in given
    assert ("--cap-add", "IPC_LOCK") in given
    assert docker.environment(lent)["NEURON_RT_VISIBLE_CORES"] == "0-31"


def test_what_docker_is_told_of_an_endpoint(tmp_path: Path) -> None:
    host = neuron_host.Host(("/dev/neuron0",), (), "2.18")
    spec = serving(tmp_path, 1)
    lent = neuron.with_cores(spec, host, range(1, 2))
    given = pairs(docker.arguments(lent))
    assert [v for k, v in given if k == "--device"] == ["/dev/neuron0"]
    assert docker.environment(lent)["NEURON_RT_VISIBLE_CORES"] == "1"
    assert ("--publish", "127.0.0.1:8123:8080") in given
    assert ("--volume", f"{spec.base}/model:/opt/ml/model:ro") in given
    assert not any("NEURON_HARNESS_DEVICE" in value for _, value in given)
    assert docker.environment(spec)["NEURON_HARNESS_DEVICE"] == "cpu"


def test_whose_the_cores_are_is_read_off_the_running_containers(tmp_path: Path) -> None:
    host = neuron_host.look(fake_host(tmp_path, 3))
    users = [
        User("one", (f"{tmp_path}/dev/neuron0",), {"NEURON_RT_VISIBLE_CORES": "1"}),
        User("all of a device", (f"{tmp_path}/dev/neuron1",), {}),
        User("not of this host", ("/dev/neuron2", "/dev/fuse"), {}),
    ]
    assert neuron.in_use(host, users) == {1: "one", 2: "all of a device", 3: "all of a device"}


def test_without_a_profile_objects_are_files_here_with_one_in_its_bucket(
    machine: Engine, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platforms.choose("ec2") == Target("ec2", LOCAL, "neuron")
    for key, value in {"ACCOUNT": "123456789012", "REGION": "us-east-2", "BUCKET": "a-bucket"}.items():
        monkeypatch.setenv(f"NEURON_HARNESS_{key}", value)
    monkeypatch.setenv("NEURON_HARNESS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
    monkeypatch.setenv("NEURON_HARNESS_SERVE_REGION", "us-west-2")
    monkeypatch.setenv("NEURON_HARNESS_SERVE_BUCKET", "another")
    target = platforms.choose("ec2")
    assert (target.profile.bucket, target.profile.region, target.profile.objects_in_s3) == (
        "a-bucket",
        "us-east-2",
        True,
    )
    assert target.profile.serving is target.profile, "one host trains and serves"
    record.write_text(platforms.FILE, platforms.texts(target)[platforms.FILE])
    assert platforms.of(record) == target
    with pytest.raises(InvalidInput, match="--executor is for platform local"):
        platforms.choose("ec2", executor="process")


def test_objects_go_to_s3_and_come_from_there(aws: Aws, profile: Profile, record: Record, tmp_path: Path) -> None:
    uri = f"s3://{profile.bucket}/runs/x"
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "weights").write_bytes(b"w" * 100)
    here = S3Store(tmp_path / "here", Transfer(aws, record))
    here.put_tree(model, f"{uri}/model/")
    (tmp_path / "here" / profile.bucket / "runs" / "x" / "model" / "config.json").unlink()

    elsewhere = S3Store(tmp_path / "elsewhere", Transfer(aws, record))
    assert elsewhere.download(f"{uri}/model/", tmp_path / "channel") == 2
    assert (tmp_path / "channel" / "sub" / "weights").read_bytes() == b"w" * 100
    # What somebody else has replaced in S3 is fetched anew, and the copy that a container may hold is left alone.
    (model / "config.json").write_text("[]")
    here.put_file(model / "config.json", f"{uri}/model/config.json")
    assert elsewhere.fetch(f"{uri}/model/config.json").read_text() == "[]"
    assert (tmp_path / "channel" / "config.json").read_text() == "{}"

    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-1").mkdir(parents=True)
    (checkpoints / "checkpoint-1" / "a").write_text("1")
    here.mirror(checkpoints, f"{uri}/checkpoints")
    (checkpoints / "checkpoint-1" / "a").rename(checkpoints / "b")
    here.mirror(checkpoints, f"{uri}/checkpoints")
    assert [key for key, _ in elsewhere.files(f"{uri}/checkpoints")] == ["b"]
    with pytest.raises(NotFound):
        elsewhere.fetch(f"{uri}/model.tar.gz")
    with pytest.raises(NotFound):
        elsewhere.download(f"{uri}/none", tmp_path / "nothing")

    mine = f"s3://{profile.bucket}/runs/{record.id}"
    here.put_file(model / "config.json", f"{mine}/model/config.json")
    RunClient(record, profile, lambda _: None).forget()
    assert list(elsewhere.files(mine)) == []
    assert list(elsewhere.files(uri)), "another run's objects stay"


@pytest.mark.usefixtures("standard_chain")
def test_a_bucket_that_is_not_there_is_told_with_the_rest(
    machine: Engine, profile: Profile, record: Record, tmp_path: Path
) -> None:
    fake_host(tmp_path / "host", 1)
    machine.has(STAND_INS)
    with pytest.raises(InvalidInput) as error:
        check(record, *tinyllama(), replace(profile, bucket="another-bucket", objects_in_s3=True))
    assert [p.what.split(" /")[0][:30] for p in error.value.problems] == [
        f"no image {GOOD[0]}"[:30],
        "there is no bucket another-bucket"[:30],
    ]


def test_a_job_goes_on_while_s3_refuses_its_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = Service(tmp_path, ObjectStore(tmp_path / "s3"), telemetry=None, account="0" * 12)  # type: ignore[arg-type]
    service.jobs.add(
        "us-west-2", "job", {"request": {"AlgorithmSpecification": {}}, "describe": {"CreationTime": 0.0}}
    )
    worker = JobWorker(service, "us-west-2", "job")
    worker.followers = {}

    class Runner:
        tried = 0

        def save_checkpoints(self, copy: bool) -> None:
            self.tried += 1
            raise Refused("the AWS credentials have expired")

    runner = Runner()
    for _ in range(2):
        worker._synced -= 60
        worker._tick(runner)  # type: ignore[arg-type]
    assert runner.tried == 2
    assert "checkpoints of job are not stored yet: the AWS credentials have expired" in capsys.readouterr().err
