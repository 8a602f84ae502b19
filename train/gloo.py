"""Where the hosts of a job on device cpu meet, before torch is imported; train/hosts.py is the other half.

Standard library only.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from containers.contract import Resources

FIRST_PORT, PORTS = 41001, 2000  # device neuron has 41000 (train/launch.py)


def environment(who: Resources, given: Mapping[str, str]) -> dict[str, str]:
    """The interface that gloo connects by; what the user has `given` is left alone.

    Processes of one machine, as executor `process` runs a job's hosts, have loopback addresses of their own.
    """
    local = all(host.startswith("127.") for host in who.hosts)
    wanted = {"GLOO_SOCKET_IFNAME": "lo" if local else who.network_interface}
    return {name: value for name, value in wanted.items() if name not in given}


def port(given: Mapping[str, str]) -> int:
    """The same on every host of a job, and most likely another for each job, since several may share a network."""
    return FIRST_PORT + zlib.crc32(given.get("TRAINING_JOB_NAME", "").encode()) % PORTS
