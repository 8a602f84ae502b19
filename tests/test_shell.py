"""Helper programs whose output is shown: side by side, and none outlives an interruption."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness import shell
from harness.errors import MissingPrerequisite

SAY = "import sys; print(sys.argv[1]); sys.exit(int(sys.argv[2]))"
MEET = """
import sys, time
from pathlib import Path
mine, other = map(Path, sys.argv[1:])
mine.touch()
while not other.exists():
    time.sleep(0.01)
"""


def say(text: str, code: int) -> list[str]:
    return [sys.executable, "-c", SAY, text, str(code)]


def test_several_run_at_the_same_time(tmp_path: Path) -> None:
    """Each ends only when the other has begun."""
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    shell.show_all([[sys.executable, "-c", MEET, *names], [sys.executable, "-c", MEET, *reversed(names)]])
    shell.show_all([])


def test_a_failure_is_raised_when_all_have_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    later = [sys.executable, "-c", f"import time; time.sleep(0.3); open({str(tmp_path / 'done')!r}, 'w')"]
    with pytest.raises(MissingPrerequisite, match="exit code 3") as caught:
        shell.show_all([say("it broke", 3), later], hint="again")
    assert caught.value.problems[0].why == "it broke"
    assert caught.value.problems[0].hint == "again"
    assert (tmp_path / "done").exists()
    with pytest.raises(MissingPrerequisite, match="no-such-program is not on this machine"):
        shell.show_all([["no-such-program"]])


def test_an_interruption_ends_all() -> None:
    sleep = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]

    def sleeping() -> list[psutil.Process]:
        return [p for p in psutil.Process().children() if sleep[-1] in p.cmdline()]

    def interrupt() -> None:
        while len(sleeping()) < 2:  # while they are being started it would find Popen in the middle
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        shell.show_all([sleep, sleep])
    assert not sleeping()
