"""Sessions of both versions of the SageMaker SDK with a local SageMaker: docs/reference/sdk-transcripts.md.

`python -m tests.emulator.sdk_session` records the page (`make aws-transcripts`), test_sdk_session.py compares it. The
scripts in sdks/ run unmodified in .venv-sdk2 and .venv-sdk3, at the same time, on the real trainer and DJL Serving
with a tiny model. Shown are the scripts' own lines and those of the job's log that are the same each time. A job's
states are shown before its log: the SDK polls both, and which one it prints first depends on the machine's load.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import shell
from harness.assets import tiny
from harness.local import control
from harness.local.control import Server

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "sdk-transcripts.md"
SCRIPTS = {"v2.py": "sdk2", "v2_script_mode.py": "sdk2", "v3.py": "sdk3"}
HEAD = """# Sessions of the SageMaker SDKs with the local SageMaker

Recorded by `make aws-transcripts`, replayed by `make test-aws`: sagemaker 2.257.7 and 3.27.0, unmodified, after
`eval "$(harness local env)"`, with the two arguments that [from-the-sdk.md](../from-the-sdk.md) names. Trainer and
DJL Serving are the real ones, the model is tiny. Lines with `###` are the script's; of the job's log those that are
the same each time are shown.
"""
# The SDKs send a request to a bucket of AWS with each call otherwise, and say so at length where there is no network.
NO_TELEMETRY = 'SchemaVersion: "1.0"\nSageMaker:\n  PythonSDK:\n    Modules:\n      TelemetryOptOut: true\n'
SHOWN = re.compile(
    r"(?P<script>### .*)|(?P<log>entrypoint: hyperparameter .*|(?:train: |first example, ).*|step=\d+/\d+|"
    r"artifact written)|(?P<state>(?:Starting|Downloading|Training|Uploading|Completed) - [\w ]+"
    r"(?:\. Training in progress\.)?)"
)


def record() -> str:
    """The page, from a server of its own."""
    folder = Path(tempfile.mkdtemp(prefix="sdk-session-"))
    try:
        server, _ = control.up(folder / "state", None, "us-west-2", "process")
        try:
            with ThreadPoolExecutor(len(SCRIPTS)) as pool:
                return "\n".join([HEAD, *pool.map(lambda script: _session(script, server, folder), SCRIPTS)])
        finally:
            control.down(folder / "state")
    finally:
        shell.reap()
        shutil.rmtree(folder, ignore_errors=True)


def _session(script: str, server: Server, folder: Path) -> str:
    work = folder / script.removesuffix(".py")
    tiny.write(work, "")
    (work / "train").mkdir()
    (work / "train.jsonl").rename(work / "train" / "train.jsonl")
    (work / "scripts").mkdir()
    (work / "scripts" / "train.py").write_text("raise SystemExit('it is not run')\n")
    source = (Path(__file__).parent / "sdks" / script).read_text()
    (work / script).write_text(source)
    (work / ".config" / "sagemaker").mkdir(parents=True)
    (work / ".config" / "sagemaker" / "config.yaml").write_text(NO_TELEMETRY)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(work), "COLUMNS": "400", "LANG": "C.UTF-8", **server.environment()}
    env |= {"PYTHONWARNINGS": "ignore", "SAGEMAKER_SUPPRESS_V2_WARNING": "1", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [ROOT / f".venv-{SCRIPTS[script]}" / "bin" / "python", script],
        cwd=work,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    text = done.stdout
    shown = "\n".join(_in_order(text))
    shown = re.sub(r"\bv3-\d{14}\b", "v3-TIME", shown)
    if done.returncode:
        shown += f"\n{text[-3000:]}\n[exit code {done.returncode}]"
    return f"## {script}\n\n```python\n{source}```\n\n```text\n{shown}\n```\n"


def _in_order(text: str) -> list[str]:
    """The shown lines: between two of the script's, the states first, then the log."""
    done: list[str] = []
    states: list[str] = []
    log: list[str] = []
    for match in SHOWN.finditer(text):
        line = match[0].rstrip()
        if match.lastgroup == "script":
            done += [*states, *log, line]
            states, log = [], []
        else:
            (states if match.lastgroup == "state" else log).append(line)
    return [*done, *states, *log]


if __name__ == "__main__":
    PAGE.write_text(record())
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} written\n")
