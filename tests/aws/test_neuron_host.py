"""A Neuron host that is not there: a fake device tree, its driver, and its cores between several commands."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from harness.errors import Busy, InvalidInput
from harness.executors import neuron_host, neuron_host as splitting
from harness.executors.neuron_host import Cores, environment, numbers, place, places
from tests.aws.fake_host import fake_host


def test_every_device_is_found_in_the_order_of_its_number(tmp_path: Path) -> None:
    host = neuron_host.look(fake_host(tmp_path, 16, efa=8))
    assert host.neuron[:3] == ("/dev/neuron0", "/dev/neuron1", "/dev/neuron2")
    assert host.efa[-1] == "/dev/infiniband/uverbs7"
    assert (len(host.neuron), len(host.efa), host.cores, host.driver) == (16, 8, 32, "2.20.28.0")


@pytest.mark.parametrize(
    ("devices", "driver", "needed", "said"),
    [
        (0, "", 2, ["this machine shows no Neuron device"]),
        (1, "2.20.28.0", 2, []),
        (1, "2.18.0.0", 2, []),
        (1, "2.28.0.0", 2, []),
        (1, "2.31.7.0", 2, ["Neuron driver 2.31.7.0 does not fit"]),
        (1, "2.10.11.0", 2, ["Neuron driver 2.10.11.0 does not fit"]),
        (1, "", 4, ["the Neuron driver's version cannot be read", "the run needs 4 NeuronCores, this host has 2"]),
    ],
)
def test_a_host_that_does_not_fit_is_told(
    tmp_path: Path, devices: int, driver: str, needed: int, said: list[str]
) -> None:
    host = neuron_host.look(fake_host(tmp_path, devices, driver))
    assert [p.what for p in neuron_host.problems(host, "sdk2.20", needed)] == said


def test_a_gap_in_the_device_numbers_is_told(tmp_path: Path) -> None:
    fake_host(tmp_path, 3)
    (tmp_path / "dev" / "neuron1").unlink()
    (problem,) = neuron_host.problems(neuron_host.look(tmp_path), "sdk2.20", 2)
    assert problem.what == "device files are missing: there are /dev/neuron0, /dev/neuron2"


def test_devices_of_cores_and_the_adapters_for_who_has_them_all(tmp_path: Path) -> None:
    host = neuron_host.look(fake_host(tmp_path, 2, efa=1))
    assert host.lent(range(3, 4)) == (f"{tmp_path}/dev/neuron1:/dev/neuron1",)
    assert [name.rpartition(":")[2] for name in host.lent(range(4))] == [
        "/dev/neuron0",
        "/dev/neuron1",
        "/dev/infiniband/uverbs0",
    ]
    real = neuron_host.Host(host.neuron, (), "2.18")
    assert real.lent(range(2)) == ("/dev/neuron0",)


SIZES = st.sampled_from([1, 6, 12, 16])  # trn1.2xlarge and inf2.xlarge, inf2.24xlarge, inf2.48xlarge, trn1.32xlarge


@given(devices=SIZES, asked=st.lists(st.tuples(st.integers(1, 33), st.booleans()), max_size=40))
def test_jobs_that_come_and_go_never_share_a_core(devices: int, asked: list[tuple[int, bool]]) -> None:
    """`asked`: cores wanted, and whether the oldest job ends before."""
    running: list[range] = []
    for count, one_ends in asked:
        if one_ends and running:
            running.pop(0)
        taken = {core for cores in running for core in cores}
        found = place(devices, count, taken)
        # By hand, from the rule's text: whole devices in the torus' sizes, aligned; else any neighbours.
        possible = []
        for first in range(devices * 2 - count + 1):
            wanted = set(range(first, first + count))
            whole = -(-count // 2)
            fits = first // 2 == (first + count - 1) // 2 if count <= 2 else first % 2 == 0
            if devices == 16 and count > 2:
                fits = whole in (1, 4, 8, 16) and first % (2 * whole) == 0
            if fits and not wanted & taken:
                possible.append(first)
        assert (None if found is None else found[0]) == min(possible, default=None)
        if found is not None:
            assert len(found) == count
            assert numbers(environment(found)["NEURON_RT_VISIBLE_CORES"]) == set(found)
            running.append(found)


def test_a_large_host_is_split_between_sixteen_small_jobs_and_a_small_one_is_for_one() -> None:
    taken: set[int] = set()
    for n in range(16):
        cores = place(16, 2, taken)
        assert cores == range(2 * n, 2 * n + 2)
        taken |= set(cores)
    assert place(16, 1, taken) is None
    assert place(1, 2, set()) == range(2)
    assert place(1, 2, {1}) is None
    assert places(16, 4) == [], "two devices of a torus are no part of it on which collectives run"
    assert [p[0] for p in places(16, 8)] == [0, 8, 16, 24]


HOLD = """
import sys, time
from pathlib import Path
from harness.executors import neuron_host
from harness.executors.neuron_host import Cores
with Cores(neuron_host.look(Path(sys.argv[1])), dict).lent("theirs", 2) as cores:
    print(cores[0], flush=True)
    time.sleep(60)
"""


def test_a_lock_holds_between_commands_and_a_killed_one_has_none(tmp_path: Path) -> None:
    host = neuron_host.look(fake_host(tmp_path, 2))
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        cores = Cores(host, dict)
        assert cores.taken() == {0: "theirs", 1: "theirs"}
        with cores.lent("ours", 2) as mine:
            assert mine == range(2, 4)
            said = "1 neighbouring NeuronCores are not free; 4 of 4 are taken"
            with pytest.raises(Busy, match=said) as error, cores.lent("third", 1):
                pass
            assert error.value.problems[0].why == "by ours, theirs"
        assert cores.taken() == {0: "theirs", 1: "theirs"}
        other.send_signal(signal.SIGKILL)
        other.wait(timeout=10)
        assert cores.taken() == {}
    finally:
        other.kill()
        other.wait(timeout=10)
        other.stdout.close()  # type: ignore[union-attr]


def test_what_runs_is_asked_and_not_remembered(tmp_path: Path) -> None:
    host = neuron_host.look(fake_host(tmp_path, 2))
    running = {0: "job", 1: "job", 2: "endpoint"}
    cores = Cores(host, lambda: dict(running))
    with cores.lent("another", 1) as found:
        assert found == range(3, 4)
    with pytest.raises(Busy), cores.lent("another", 2):
        pass
    del running[0], running[1]  # the job has ended, or its container was killed
    with cores.lent("another", 2) as found:
        assert found == range(2)
    large = Cores(neuron_host.look(fake_host(tmp_path / "large", 16)), dict)
    with pytest.raises(InvalidInput, match="4 NeuronCores are no part of this host"), large.lent("another", 4):
        pass


def test_what_the_container_is_told() -> None:
    assert environment(range(2, 4)) == {"NEURON_RT_VISIBLE_CORES": "2-3", "NEURON_RT_NUM_CORES": "2"}
    assert environment(range(3, 4))["NEURON_RT_VISIBLE_CORES"] == "3"
    assert splitting.numbers("0-3,6") == {0, 1, 2, 3, 6}
