"""A host as SageMaker makes it: named "aws", which resolves to nothing, with no network but loopback.

    unshare --uts --net --mount [--user --map-root-user] python -m tests.chain.namespace HOSTS COMMAND …

HOSTS is the file that stands for /etc/hosts; whoever started this may write to it later.
`words` is the whole command.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
NAME = "aws"


def words(python: Path, hosts: Path, *command: str) -> list[str]:
    """The command for `subprocess`; root needs no user namespace, everybody else gets one."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    kinds = ["--uts", "--net", "--mount", "--fork", "--kill-child"]
    return ["unshare", *user, *kinds, str(python), "-m", "tests.chain.namespace", str(hosts), *command]


def enter(hosts: Path) -> None:
    """Name the host, bring loopback up, and put `hosts` in the place of /etc/hosts; no name server is reached."""
    socket.sethostname(NAME)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    try:
        socket.getaddrinfo(NAME, None)
    except OSError:
        return
    raise RuntimeError(f"{NAME} resolves here: this is not the host that the test is about")


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
