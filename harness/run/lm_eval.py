"""Tasks of EleutherAI's lm-eval, asked of an endpoint through OpenAI's routes of the proxy.

The program is the user's own, in an environment of its own: it wants other packages than ours. It is called
unmodified, as docs/requests.md shows it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import proxy
from harness.errors import EndpointFailed, InvalidInput, MissingPrerequisite
from harness.shell import run

PROGRAM = "LM_EVAL"  # names the program where it is not on PATH
AT_ONCE = 4  # requests that it keeps open: as many as engine cpu answers together by default
Results = dict[str, dict[str, float]]


def program() -> str:
    """Raises MissingPrerequisite where there is none."""
    found = shutil.which(os.environ.get(PROGRAM, "lm_eval"))
    if found is None:
        hint = f"pip install 'lm-eval[api]' in an environment of its own, and {PROGRAM}=ENVIRONMENT/bin/lm_eval"
        raise MissingPrerequisite("evaluate.lm_eval needs the program lm_eval", "it is not on PATH", hint)
    return found


def check(tasks: Sequence[str], path: Path | None) -> None:
    """Try every task on one example with lm-eval's own dummy model, before anything is trained.

    Raises MissingPrerequisite without the program, InvalidInput with lm-eval's last words where a task fails.
    """
    command = [program(), "--model", "dummy", "--limit", "1", *_tasks(tasks, path)]
    try:
        run(command)
    except MissingPrerequisite as error:
        why = error.problems[0].why.rpartition("; ")[2]
        raise InvalidInput(f"evaluate.lm_eval: {', '.join(tasks)} cannot be done", why, "lm_eval ls tasks") from None


def ask(runtime: Any, endpoint: str, tokenizer: str, tasks: Sequence[str], path: Path | None) -> Results:
    """Task -> metric -> value, of an endpoint behind `runtime`, boto3's client of SageMaker Runtime.

    `tokenizer` is a directory or a hub id: lm-eval sends token ids. Raises EndpointFailed with lm-eval's last words.
    """
    token = secrets.token_urlsafe(24)
    application = proxy.application(proxy.Endpoint(runtime, endpoint), token)
    with tempfile.TemporaryDirectory(prefix="lm-eval-") as scratch, proxy.serving(application) as port:
        settings = {
            "model": endpoint,
            "base_url": f"http://127.0.0.1:{port}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": tokenizer,
            "num_concurrent": str(AT_ONCE),
        }
        command = [program(), "--model", "local-completions", "--output_path", scratch, *_tasks(tasks, path)]
        command += ["--model_args", ",".join(f"{key}={value}" for key, value in settings.items())]
        try:
            run(command, env={**os.environ, "OPENAI_API_KEY": token})
        except MissingPrerequisite as error:
            raise EndpointFailed(f"lm-eval on endpoint {endpoint} failed", error.problems[0].why) from None
        (file,) = Path(scratch).rglob("results_*.json")
        return results(json.loads(file.read_text(encoding="utf-8")))


def _tasks(tasks: Sequence[str], path: Path | None) -> list[str]:
    return ["--tasks", ",".join(tasks), *(["--include_path", str(path)] if path is not None else [])]


def results(written: Mapping[str, Any]) -> Results:
    """The metrics that lm-eval has written: numbers only, without standard errors."""
    found: Results = {}
    for task, row in written["results"].items():
        named = {name.partition(",")[0]: value for name, value in row.items() if "_stderr" not in name}
        found[task] = {
            name: float(value)
            for name, value in named.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("alias", "sample_len")
        }
    return found


def table(found: Mapping[str, Results]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Rows and header: a task's metric, and its value for each model."""
    metrics = dict.fromkeys((task, name) for one in found.values() for task, row in one.items() for name in row)
    rows = [
        (
            f"{task} {name}",
            *(f"{one[task][name]:.4f}" if name in one.get(task, {}) else "-" for one in found.values()),
        )
        for task, name in metrics
    ]
    return rows, ("", *found)
