"""What the page shows and whom it lets in, without a browser; tests/ui has the page itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.errors import EndpointFailed, MissingPrerequisite
from harness.record import Holder, Record
from harness.run import invoke
from harness.run.status import EndpointStatus, RunStatus
from harness.ui import commands, server, shown, watch
from harness.ui.guard import Guard

TOKEN, PORT = "t0ken", 4711


def asked(path: str = "/", kind: str = "http", **headers: str) -> tuple[int, dict[str, str], bool]:
    """Status, headers, and whether the application was asked."""
    sent: list[Any] = []
    reached: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(True)

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    headers = {"host": f"127.0.0.1:{PORT}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": raw}
    asyncio.run(Guard(app, TOKEN, PORT)(scope, lambda: None, send))  # type: ignore[arg-type]
    answer = sent[0] if sent else {}
    found = {k.decode(): v.decode() for k, v in answer.get("headers", [])}
    return answer.get("status", answer.get("code", 0)), found, bool(reached)


def test_the_token_becomes_a_cookie_that_scripts_do_not_see() -> None:
    status, headers, reached = asked(f"/run/x?token={TOKEN}")
    assert (status, headers["location"], reached) == (303, "/run/x", False)
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    assert asked(cookie=headers["set-cookie"].partition(";")[0])[2]
    assert asked(kind="websocket", cookie=f"harness-ui-{PORT}={TOKEN}")[2]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": f"harness-ui-{PORT}=wrong"},
        {"cookie": f"harness-ui-1={TOKEN}"},
        {"cookie": "\udcff=; ;;"},
        {"cookie": f"harness-ui-{PORT}={TOKEN}", "host": f"evil.example:{PORT}"},
        {"cookie": f"harness-ui-{PORT}={TOKEN}", "origin": "http://127.0.0.1:3000"},
        {"cookie": f"harness-ui-{PORT}={TOKEN}", "origin": "null"},
    ],
)
def test_everybody_else_is_refused(kind: str, headers: dict[str, str]) -> None:
    headers = {k: v.encode("utf-8", "replace").decode() for k, v in headers.items()}
    status, _, reached = asked(kind=kind, **headers)
    assert not reached
    assert status == (403 if kind == "http" else 1008)


def test_a_curve_of_a_log_that_was_resumed() -> None:
    log = ["train: 64 rows", "step=5/20 loss=2.5 left=1s", "step=10/20 loss=2.0", "starting at step 5"]
    found = shown.curve([*log, "step=10/20 loss=1.5", "step=15/20 loss=1.0", "step=20/20 eval_loss=0.9"])
    assert found.points == ((5, 2.5), (10, 1.5), (15, 1.0))
    assert (found.step, found.steps) == (15, 20)
    assert found.told == "training loss 2.500 at step 5, 1.000 at step 15 of 20"
    assert shown.curve([]).told == "no training loss has been logged yet"


def status_of(training: str, **endpoints: str) -> RunStatus:
    made = tuple(EndpointStatus(f"r-{name}", state, "") for name, state in endpoints.items())
    return RunStatus("r", "local", training, made, None, "")


def view_of(held_by: str = "", measured: bool = False) -> shown.View:
    scores = (("after fine-tuning", "83.5 %"),) if measured else ()
    return shown.View(shown.Curve(()), (), scores, "", held_by)


@pytest.mark.parametrize(
    ("status", "view", "possible"),
    [
        (status_of("Training"), view_of("run"), {"stop"}),
        (status_of("Training"), view_of(), {"go_on", "take_down"}),
        (status_of("Interrupted"), view_of(), {"go_on"}),
        (status_of("Failed"), view_of(), {"go_on"}),
        (status_of("Completed"), view_of(measured=True), {"deploy_tuned", "deploy_base"}),
        (
            status_of("Completed", tuned="InService"),
            view_of(measured=True),
            {"deploy_base", "chat", "take_down"},
        ),
        (status_of("Completed", tuned="Creating"), view_of("deploy", True), {"stop"}),
        (status_of("unknown"), view_of(), set()),
    ],
)
def test_which_verbs_make_sense(status: RunStatus, view: shown.View, possible: set[str]) -> None:
    assert {name for name, able in vars(shown.actions(status, view)).items() if able} == possible


def test_a_plan_as_bars() -> None:
    page = shown.plan_html("tinyllama-imdb", "local")
    assert 'aria-label="training on ml.trn1.2xlarge, one NeuronCore: about' in page
    assert "an endpoint that stays costs" in page
    assert "<script" not in page


def test_a_file_with_markup_in_its_name_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('name = "a"\n[model]\nid = "x"\n[data]\nid = "y"\n')
    (tmp_path / "other.toml").write_text("[tool.ruff]\n")
    assert "a.toml" in shown.run_files()
    assert "other.toml" not in shown.run_files()


def test_who_holds_a_run_is_seen_and_interrupted(tmp_path: Path) -> None:
    record = Record("r", tmp_path)
    assert record.holder() is None
    code = "import signal, sys, time; from pathlib import Path; from harness.record import Record\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a shell's background job
    code += "with Record('r', Path(sys.argv[1])).held('train'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert record.holder() == Holder("train", process.pid)
        assert commands.interrupt(record)
        assert process.wait(30) in (1, -signal.SIGINT)
    assert record.holder() is None
    assert not commands.interrupt(record)


def test_a_process_with_the_number_of_one_that_has_ended_is_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(f"`harness run` (process {os.getpid()})")
    os.utime(lock, (time.time() - 1e6,) * 2)  # older than this process
    assert Record("r", tmp_path).holder() is None


def test_what_a_verb_that_failed_has_said(monkeypatch: pytest.MonkeyPatch) -> None:
    command = commands.start(["run", "no-such-file.toml"])
    assert command.process.wait(60) == 8
    (first, *rest) = watch.problems_of(command)
    assert first == "error: no run file no-such-file.toml"
    assert rest


def test_an_answer_fits_the_positions(tmp_path: Path) -> None:
    record = Record("r", tmp_path)
    assert watch.max_tokens(record) == watch.MAX_TOKENS
    (tmp_path / "run.json").write_text(json.dumps({"serve": {"n_positions": 120}}))
    assert watch.max_tokens(record) == 60


def event(**value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def test_pieces_of_a_chat_wherever_chunks_end() -> None:
    delta = [event(choices=[{"delta": {"content": text}}]) for text in ("Grüße", " you")]
    stream = b"".join([event(choices=[{"delta": {"role": "assistant"}}]), *delta, b"data: [DONE]\n\n"])
    for size in (1, 7, len(stream)):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert "".join(invoke.chat_pieces(chunks)) == "Grüße you"


@pytest.mark.parametrize("stream", [event(error="slow"), b'{"error": "slow", "code": 400}', b"data: nonsense\n\n"])
def test_a_chat_that_fails(stream: bytes) -> None:
    with pytest.raises(EndpointFailed) as failed:
        list(invoke.chat_pieces([stream]))
    assert "slow" in failed.value.problems[0].why or "nonsense" in failed.value.problems[0].why


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "EXTRA", "no_such_package")
    with pytest.raises(MissingPrerequisite) as missing:
        server.require()
    assert "make ui" in missing.value.problems[0].hint
