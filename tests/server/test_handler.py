"""serve/model.py behind the real rolling batch of DJL's engine: many clients, deadlines, health, stopping, the traps.

The traps A to K are those that DJL Serving sets for a handler (docs/decisions/002, containers/README.md).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from containers.supervise import EXIT_UNWELL
from tests.server.endpoint import Answer, Endpoint, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.server
# So many tokens even of a model of 3 layers take longer than any deadline here: 2,000 in a second.
LONG = {"max_new_tokens": 64_900, "ignore_eos_token": True, "details": True}
OPTIONS = {
    "OPTION_N_POSITIONS": "65000",
    "OPTION_MAX_BATCH_SIZE": "3",
    "OPTION_DTYPE": "fp32",
    "OMP_NUM_THREADS": "1",
}


def ask(text: str = "red warm", **parameters: object) -> dict[str, object]:
    return {"inputs": text, "parameters": {"max_new_tokens": 12, "ignore_eos_token": True, **parameters}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    done = subprocess.run(
        [ROOT / ".venv-serve" / "bin" / "python", "-m", "tests.server.models", str(folder), "llama"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "llama"


@pytest.fixture(scope="module")
def endpoint(model: Path) -> Iterator[Endpoint]:
    # DJL's own time-outs, as an image or an old run file may set them: the handler's deadlines hold all the same.
    environment = {**OPTIONS, "PREDICT_TIMEOUT": "1", "OPTION_PREDICT_TIMEOUT": "1", "SERVING_PROMETHEUS": "true"}
    with Endpoint(model, {**environment, "OPTION_ANSWER_TIMEOUT": "4", "OPTION_STREAM_TIMEOUT": "8"}) as started:
        yield started


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def test_sixteen_clients_get_what_one_gets(endpoint: Endpoint, pool: ThreadPoolExecutor) -> None:
    texts = [f"{word} {n}: warm?" for n in range(8) for word in ("red", "blue")]
    alone = [endpoint.post(**ask(text)).json() for text in texts]
    assert len({answer["generated_text"] for answer in alone}) > 10
    together = list(pool.map(lambda text: endpoint.post(**ask(text)).json(), texts))
    assert together == alone


def test_a_seed_draws_the_same_in_company(endpoint: Endpoint, pool: ThreadPoolExecutor) -> None:
    drawn = {"do_sample": True, "temperature": 3.0, "top_p": 0.9, "seed": 7}
    alone = endpoint.post(**ask(**drawn)).json()
    others = [pool.submit(endpoint.post, **ask(f"v{n}", do_sample=True)) for n in range(6)]
    assert endpoint.post(**ask(**drawn)).json() == alone
    assert all(other.result().status == 200 for other in others)
    assert endpoint.post(**ask(**{**drawn, "seed": 8})).json() != alone


def test_streams_advance_together_and_a_question_beside_them_is_answered(  # trap C
    endpoint: Endpoint, pool: ThreadPoolExecutor
) -> None:
    def read(text: str) -> list[float]:
        return [at for at, _ in endpoint.stream(**ask(text, max_new_tokens=400), stream=True)]

    began = time.monotonic()
    streams = [pool.submit(read, text) for text in ("red", "blue")]
    time.sleep(0.3)
    question = endpoint.post(**ask())
    answered = time.monotonic() - began
    (first, second) = (stream.result() for stream in streams)
    assert question.status == 200
    assert len(first) > 50
    assert max(first[0], second[0]) < min(first[-1], second[-1]), "both ran at once"
    assert answered < max(first[-1], second[-1])


def test_one_bad_request_touches_nobody(endpoint: Endpoint, pool: ThreadPoolExecutor) -> None:  # traps A and E
    good = [pool.submit(endpoint.post, **ask(f"v{n}", max_new_tokens=100)) for n in range(4)]
    bad = endpoint.request("POST", "/invocations", b'{"inputs": "a", "parameters": {"a\\nb": 1}}')
    assert bad.status == 400
    assert bad.headers["Content-Type"] == "application/json"
    told = bad.json()
    assert set(told) == {"error", "code"}
    assert "\n" not in told["error"]
    assert [answer.result().status for answer in good] == [200] * 4


def test_an_endless_answer_ends_with_what_there_is_and_the_endpoint_lives(endpoint: Endpoint) -> None:  # trap D
    answer = endpoint.post(**ask(**LONG))
    details = answer.json()["details"]
    assert (answer.status, details["finish_reason"]) == (200, "timeout")
    assert 0 < details["generated_tokens"] < 64_900
    stream = b"".join(part for _, part in endpoint.stream(**ask(**LONG), stream=True))
    row = json.loads(stream.splitlines()[-1])
    assert row["details"]["finish_reason"] == "timeout"
    assert row["details"]["generated_tokens"] > details["generated_tokens"], "a stream has more time"
    assert endpoint.ping() == 200
    assert endpoint.post(**ask()).status == 200


def test_more_clients_than_slots_wait_their_turn(endpoint: Endpoint, pool: ThreadPoolExecutor) -> None:
    answers = list(pool.map(lambda n: endpoint.post(**ask(f"v{n}", max_new_tokens=40, details=True)), range(15)))
    assert {(a.status, a.json()["details"]["finish_reason"]) for a in answers} == {(200, "length")}


def test_a_prompt_of_megabytes_is_refused_and_the_endpoint_lives(endpoint: Endpoint) -> None:
    for size, status in ((1_500_000, 422), (24_000_000, 413)):
        answer = endpoint.post(**ask("red " * (size // 4)))
        assert answer.status == status, answer.body
    assert endpoint.post(**ask()).status == 200


def test_a_client_that_leaves_takes_nothing_with_it(endpoint: Endpoint) -> None:
    for _ in range(5):
        stream = endpoint.stream(**ask(max_new_tokens=300), stream=True)
        next(stream)
        stream.close()
    assert endpoint.post(**ask()).status == 200


def test_each_request_leaves_one_line_without_its_text(endpoint: Endpoint) -> None:
    endpoint.request("POST", "/invocations", json.dumps(ask("a secret")).encode(), **{"x-request-id": "line-1"})
    wait_for(lambda: "request id=line-1 " in endpoint.log(), 5)
    (line,) = [line for line in endpoint.log().splitlines() if "request id=line-1 " in line]
    assert "status=200 finish=length stream=false" in line
    assert "generated_tokens=12 " in line
    assert "secret" not in endpoint.log()


def test_metrics_are_prometheus_text(endpoint: Endpoint) -> None:
    before = _total(endpoint)
    endpoint.post(**ask())
    assert _total(endpoint) == before + 12


def _total(endpoint: Endpoint) -> float:
    text = endpoint.request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("serve_generated_tokens_total{")]
    return float(line.split()[-1])


def start(model: Path, **environment: str) -> Endpoint:
    return Endpoint(model, {**OPTIONS, **environment})


def test_what_was_accepted_before_term_is_answered(model: Path, pool: ThreadPoolExecutor) -> None:
    with start(model) as endpoint:
        running = [pool.submit(endpoint.post, **ask(f"v{n}", max_new_tokens=500, details=True)) for n in range(9)]
        stream = pool.submit(lambda: b"".join(part for _, part in endpoint.stream(**ask(**LONG), stream=True)))
        time.sleep(0.5)
        endpoint.terminate()
        answers = [one.result() for one in running]
        assert [answer.status for answer in answers] == [200] * 9, endpoint.log()[-2000:]
        assert {answer.json()["details"]["finish_reason"] for answer in answers} <= {"length", "timeout"}
        last = json.loads(stream.result().splitlines()[-1])
        assert last["details"]["finish_reason"] in ("length", "timeout")
        wait_for(lambda: endpoint.code is not None, 15)
        assert endpoint.code == 143


def until_gone(endpoint: Endpoint) -> float:
    """Seconds until /ping stops answering 200."""
    began = time.monotonic()
    wait_for(lambda: endpoint.ping() != 200, 30)
    return time.monotonic() - began


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("busy", [False, True])
def test_a_handler_that_dies_or_hangs_ends_the_container(model: Path, signum: int, busy: bool) -> None:
    with start(model) as endpoint:
        (handler,) = endpoint.handlers()
        if busy:
            threading.Thread(target=lambda: _quietly(endpoint), daemon=True).start()
            time.sleep(1.0)
        handler.send_signal(signum)
        seconds = until_gone(endpoint)
        wait_for(lambda: endpoint.code is not None, 10)
        assert endpoint.code == EXIT_UNWELL
        assert "so that it is replaced" in endpoint.log()
        # Five seconds by PID 1's clock; this test's looks and a busy machine come on top.
        assert seconds < 12


def _quietly(endpoint: Endpoint) -> Answer | None:
    try:
        return endpoint.post(**ask(**LONG))
    except (OSError, json.JSONDecodeError):
        return None
    except Exception:  # noqa: BLE001 (the connection is cut in the middle of an answer)
        return None


def test_two_replicas_answer_alike_and_one_that_dies_ends_the_container(
    model: Path, pool: ThreadPoolExecutor
) -> None:
    with start(model, OPTION_REPLICAS="2") as endpoint:
        handlers = endpoint.handlers()
        assert len(handlers) == 2
        before = [sum(h.cpu_times()[:2]) for h in handlers]
        texts = ["red warm", "blue warm"] * 12
        answers = list(pool.map(lambda text: endpoint.post(**ask(text, max_new_tokens=100)).json(), texts))
        assert len({answer["generated_text"] for answer in answers}) == 2
        worked = [sum(h.cpu_times()[:2]) - b for h, b in zip(handlers, before, strict=True)]
        assert min(worked) > 0.1 * max(worked), "both took part"
        handlers[1].kill()
        wait_for(lambda: endpoint.code is not None, 15)
        assert endpoint.code == EXIT_UNWELL


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OPTION_N_POSITION": "100"}, "OPTION_N_POSITION is not known; did you mean OPTION_N_POSITIONS?"),
        ({"OPTION_DTYPE": "int4"}, "dtype is 'int4'; it must be one of bf16, fp16, fp32"),
        ({"HF_MODEL_ID": "gpt2"}, "HF_MODEL_ID is set"),  # trap F
    ],
)
def test_an_error_at_start_is_the_last_line(model: Path, environment: dict[str, str], said: str) -> None:  # trap H
    with Endpoint(model, {**OPTIONS, **environment}, wait=False) as endpoint:
        wait_for(lambda: endpoint.code is not None, 120)
        last = endpoint.log().splitlines()[-1]
    assert last.startswith("entrypoint: ")
    assert said in last


def test_a_generation_config_that_no_engine_applies_is_refused_at_start(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"no_repeat_ngram_size": 3}')
    with Endpoint(tmp_path, OPTIONS, wait=False) as endpoint:
        wait_for(lambda: endpoint.code is not None, 120)
        assert "no_repeat_ngram_size=3" in endpoint.log().splitlines()[-1]
