"""Executor `neuron`: executor `docker` on a Trainium or Inferentia host; each container gets cores of its own.

A job gets as many cores as the instance has that its request names, an endpoint as many as share its model; whoever
sets NEURON_RT_NUM_CORES in a request gets so many. Everything but the start is docker's: the handle is one of docker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from containers import contract
from containers.contract import Paths
from harness.errors import MissingPrerequisite
from harness.executors import docker, neuron_host, neuron_host as splitting
from harness.executors.docker import User, alive, check_environment, kill_largest, pids, poll, remove, stop, sweep
from harness.executors.neuron_host import Cores, Host
from harness.executors.spec import ContainerSpec, Handle
from harness.spec import instances
from harness.spec.instances import CORES_PER_DEVICE
from serve.options import DJL_NAMES

__all__ = ["alive", "check_environment", "kill_largest", "pids", "poll", "remove", "start", "stop", "sweep"]

TP_DEGREE = f"OPTION_{DJL_NAMES['tp_degree'].upper()}"


def start(spec: ContainerSpec) -> Handle:
    """Start the container with its cores; they are its own until it has ended.

    Raises MissingPrerequisite where the host has no or not enough of them, Busy where others have them, what
    docker.start raises.
    """
    count = needed(spec)
    if count == 0:
        return docker.start(spec)
    host = neuron_host.look()
    if count > host.cores:
        raise MissingPrerequisite(f"{spec.owner or spec.name} needs {count} NeuronCores, this host has {host.cores}")
    with of(host).lent(spec.owner or spec.name, count) as cores:
        return docker.start(with_cores(spec, host, cores))


def of(host: Host) -> Cores:
    """The host's cores, as the engine's running containers have them."""
    return Cores(host, lambda: in_use(host, docker.users()))


def with_cores(spec: ContainerSpec, host: Host, cores: range) -> ContainerSpec:
    """`spec` with the devices and the variables of these cores."""
    environment = {**spec.environment, **splitting.environment(cores)}
    # A job without a network has one to itself: eth0, which resourceconfig.json names, and no way out.
    job = spec.job or (spec.name if spec.port is None else "")
    return replace(spec, devices=host.lent(cores), environment=environment, job=job)


def needed(spec: ContainerSpec) -> int:
    """NeuronCores that the container is to have; none where its request asks for device cpu."""
    if spec.environment.get(contract.DEVICE_ENV) == "cpu":
        return 0
    if spec.environment.get(splitting.COUNT):
        return int(spec.environment[splitting.COUNT])
    if spec.port is not None:
        return int(spec.environment.get(TP_DEGREE, 1))
    instance = contract.read_training_input(Paths(spec.base)).resources.instance_type
    return instances.CORES.get(instance, 0)


def in_use(host: Host, users: Sequence[User]) -> dict[int, str]:
    """Core -> whose running container has it; one with a device and no range of cores has all of the device."""
    index = {str(host.path(file)): n for n, file in enumerate(host.neuron)}
    found = {}
    for user in users:
        for device in (index[path] for path in user.devices if path in index):
            first = device * CORES_PER_DEVICE
            for core in set(range(first, first + CORES_PER_DEVICE)) & _visible(user.environment, host):
                found[core] = user.name
    return found


def _visible(environment: Mapping[str, str], host: Host) -> set[int]:
    try:
        return splitting.numbers(environment[splitting.VISIBLE])
    except (KeyError, ValueError):
        return set(range(host.cores))
