"""The real command line in one directory: what it says, how it ends on signals, what is there afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chain.conftest import write_tiny_run
from tests.conftest import ROOT
from tests.emulator.left_over import containers

PYTHON = str(ROOT / ".venv" / "bin" / "python")
SLOW = 20000  # steps: more than any of these tests waits for


@dataclass(frozen=True)
class Commands:
    """Commands that are started in `folder`; `words` stand before a verb, `state` is the server's directory."""

    folder: Path
    words: Sequence[str] = (PYTHON, "-m", "harness")
    environment: Mapping[str, str] = field(default_factory=dict)
    state: str = ".local"

    def write_run_files(self, model: Path) -> None:
        """tiny.toml, and slow.toml with more steps than a test waits for."""
        text = write_tiny_run(model, self.folder).read_text()
        text = text.replace('"tiny"', '"slow"').replace("max_steps = 60", f"max_steps = {SLOW}")
        (self.folder / "slow.toml").write_text(text)

    def _env(self) -> dict[str, str]:
        runs = str(self.folder / ".runs")
        return {**os.environ, "HARNESS_RUNS_DIR": runs, "PYTHONPATH": str(ROOT), **self.environment}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command to its end; it never ends with a traceback."""
        done = subprocess.run(
            [*self.words, *words],
            cwd=self.folder,
            env=self._env(),
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def started(self, *words: str, until: str, stream: str = "stderr") -> subprocess.Popen[str]:
        """A command, running, as soon as it has printed `until`."""
        child = subprocess.Popen(
            [*self.words, *words],
            cwd=self.folder,
            env=self._env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        source, seen = getattr(child, stream), ""
        while until not in seen:
            line = source.readline()
            assert line, f"ended before it said {until!r}:\n{seen}"
            seen += line
        return child

    def record(self, run_id: str) -> Path:
        return self.folder / ".runs" / run_id

    def newest(self, name: str) -> str:
        return max(p.name for p in (self.folder / ".runs").glob(f"{name}-2*"))

    def created(self, run_id: str) -> Counter[str]:
        """Name -> how often it was made, as the ledger has it."""
        events = [json.loads(line) for line in (self.record(run_id) / "ledger.jsonl").read_text().splitlines()]
        return Counter(e["name"] for e in events if e["event"] == "created")

    def steps(self, run_id: str) -> list[int]:
        """The steps in the run's log, in its order."""
        log = (self.record(run_id) / "logs" / "train.log").read_text()
        return [int(n) for n in re.findall(r"^step=(\d+)/\d+ loss=", log, re.MULTILINE)]

    def there(self) -> list[str]:
        """What the local SageMaker has of endpoints, configurations, models and running jobs, by its own files."""
        found = []
        for kind in ("endpoints", "endpoint-configs", "models", "training-jobs"):
            for path in (self.folder / self.state / "sagemaker" / kind).rglob("*.json"):
                if kind != "training-jobs" or '"InProgress"' in path.read_text():
                    found.append(f"{kind}/{path.stem}")
        return found

    def is_up(self) -> bool:
        """Whether a local SageMaker is."""
        return (self.folder / self.state / "server.json").exists()

    def left_over(self) -> list[str]:
        """Containers of this directory's local SageMaker that still run."""
        return containers(self.folder / self.state)

    def shown(self, run_id: str) -> dict[str, object]:
        """The run as `harness ps` has it."""
        rows = json.loads(self("ps", "--json").stdout)
        (row,) = [row for row in rows if row["run"] == run_id]
        return dict(row)


def killed(child: subprocess.Popen[str]) -> None:
    """KILL, which leaves no time for anything."""
    child.kill()
    child.communicate(timeout=600)
    assert child.returncode == -signal.SIGKILL


def interrupted(child: subprocess.Popen[str], signum: int, code: int, times: int = 2) -> str:
    """Send a signal, as often as somebody who is impatient; what the command said on its way out."""
    for _ in range(times):
        child.send_signal(signum)
    out, err = child.communicate(timeout=600)
    assert child.returncode == code, out + err
    assert "Traceback" not in err
    return err


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """One message with the reason and what to do, and the exit code of its class."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1, done.stderr
    assert done.stderr.count("hint: ") == 1, done.stderr
    for text in said:
        assert text in done.stderr
