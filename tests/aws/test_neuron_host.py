"""A Neuron host that is not there: a fake device tree, its driver, its cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import Busy, MissingPrerequisite
from harness.platforms import neuron_host
from harness.platforms.neuron_host import Cores


def fake_host(root: Path, devices: int, driver: str = "2.20.28.0", efa: int = 0) -> Path:
    (root / "dev" / "infiniband").mkdir(parents=True)
    for n in range(devices):
        (root / "dev" / f"neuron{n}").touch()
    (root / "dev" / "neuron-notes").touch()
    for n in range(efa):
        (root / "dev" / "infiniband" / f"uverbs{n}").touch()
    if driver:
        (root / "sys" / "module" / "neuron").mkdir(parents=True)
        (root / "sys" / "module" / "neuron" / "version").write_text(driver + "\n")
    return root


def test_every_device_is_found_in_the_order_of_its_number(tmp_path: Path) -> None:
    host = neuron_host.look(fake_host(tmp_path, 16, efa=8))
    assert host.devices[:3] == ("/dev/neuron0", "/dev/neuron1", "/dev/neuron2")
    assert host.devices[-1] == "/dev/infiniband/uverbs7"
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
def test_a_host_that_does_not_fit_is_told_before_anything_starts(
    tmp_path: Path, devices: int, driver: str, needed: int, said: list[str]
) -> None:
    host = neuron_host.look(fake_host(tmp_path, devices, driver))
    assert [p.what for p in neuron_host.problems(host, "sdk2.20", needed)] == said
    if said:
        with pytest.raises(MissingPrerequisite):
            neuron_host.check(host, "sdk2.20", needed)


def test_cores_are_split_and_those_of_the_dead_are_free(tmp_path: Path) -> None:
    host = neuron_host.look(fake_host(tmp_path, 2))
    living = {"job", "endpoint", "another"}
    cores = Cores(host, lambda name: name in living, tmp_path)
    assert cores.claim("job", 2) == range(0, 2)
    assert cores.claim("endpoint", 1) == range(2, 3)
    assert cores.claim("job", 2) == range(0, 2), "who asks again keeps them"
    with pytest.raises(Busy, match="2 neighbouring NeuronCores are not free; 3 of 4 are taken") as error:
        cores.claim("another", 2)
    assert error.value.problems[0].why == "by endpoint, job"
    living.remove("job")  # it crashed, and so did its harness
    assert Cores(host, lambda name: name in living, tmp_path).claim("another", 2) == range(0, 2)
    cores.release("another")
    assert cores.taken() == {2: "endpoint"}
    with pytest.raises(Busy):
        cores.claim("another", 3)  # two on the left and one on the right of it are no neighbours


def test_what_the_container_is_told() -> None:
    assert neuron_host.environment(range(2, 4)) == {"NEURON_RT_VISIBLE_CORES": "2-3", "NEURON_RT_NUM_CORES": "2"}
    assert neuron_host.environment(range(3, 4))["NEURON_RT_VISIBLE_CORES"] == "3"
