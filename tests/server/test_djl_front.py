"""The local HTTP front and a real DJL Serving 0.34 must behave alike: the same tests run against both.

    pytest -m server tests/server/test_djl_front.py                                   the local front
    DJL_SERVING=/path/to/djl-serving pytest -m server tests/server/test_djl_front.py  a real server

Below the HTTP front both have DJL's own Python engine. Where they knowingly differ, the test says so by
asking for REAL; the list is in docs/decisions/003-local-http-front.md.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from harness.assets.djl import ensure
from harness.paths import CACHE, python_of

pytestmark = pytest.mark.server

REAL = bool(os.environ.get("DJL_SERVING"))
HEALTHY, FAILED = ({"model": {"status": word}} for word in ("Healthy", "FAILED"))

# Every call is written to a file, as the handler saw it; what the request's "op" says is then done.
HANDLER = """
import json, os, time
from djl_python import Output

def log(inputs):
    content = inputs.get_content()
    record = {"props": dict(inputs.get_properties()),
              "content": [(content.key_at(i), content.value_at(i).decode()) for i in range(content.size())]}
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(record) + "\\n")

def parts(request):
    for i in range(request["n"]):
        if i == request.get("fail_at"):
            raise ValueError("boom")
        yield f"part {i}|"
        time.sleep(request.get("pause", 0))

def handle(inputs):
    log(inputs)
    if inputs.is_empty():
        print("the handler's first call", flush=True)
        exec(os.environ.get("AT_INIT", ""))
        return None
    request = inputs.get_as_json()
    if request["op"] == "echo":
        return Output().add(request["text"])
    if request["op"] == "output":
        output = Output(request.get("code", 200), request.get("message", "OK"))
        for key, value in request.get("properties", {}).items():
            output.add_property(key, value)
        return output.add(request.get("body", ""))
    if request["op"] == "sleep":
        time.sleep(request["seconds"])
        return Output().add("slept")
    if request["op"] == "stream":
        output = Output().add_property("Content-Type", "text/plain")
        output.add_stream_content(parts(request), output_formatter=lambda part: part)
        return output
    if request["op"] == "die":
        os._exit(3)
    if request["op"] == "raise":
        raise ValueError("boom")
    return None
"""

# A rolling batch: each step gives every active request one word, and says how large the batch was.
ROLLING = """
import json, time
from djl_python import Output

active = {}

def handle(inputs):
    if not inputs.get_properties().get("batch_size") and inputs.is_empty():
        return None
    batch = inputs.get_batches()
    output = Output()
    for item in batch:
        if item.get_property("requestId"):
            active[id_of(item)] = dict(item.get_as_json(), done=0)
            order.append(id_of(item))
    time.sleep(0.05)
    finished = []
    for i, key in enumerate(list(order)):
        request = active[key]
        request["done"] += 1
        last = request["done"] == request["n"]
        frame = {"data": f"{len(order)} " if request["stream"] or last else "", "last": last}
        if request.get("fail_at") == request["done"]:
            frame = {"data": "", "last": True, "code": 422, "error": "not like this"}
        if frame["last"]:
            finished.append(key)
        if request["done"] == 1:
            output.add_property(f"batch_{i}_Content-Type", "text/x-rolling")
        output.add(Output.binary_encode(frame), batch_index=i)
    for key in finished:
        order.remove(key)
    return output

order = []

def id_of(item):
    return item.get_property("requestId")
"""


@dataclass
class Answer:
    """One complete HTTP answer."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One server process in a directory of its own; `calls` are the handler's, as it saw them."""

    def __init__(self, launcher: Path, home: Path, source: str, env: dict[str, str], config: dict[str, str]):
        self.home, self.port, self.tmp = home, free_port(), tempfile.mkdtemp(prefix="djl")
        (home / "model").mkdir(parents=True)
        (home / "server").mkdir()
        (home / "model.py").write_text(source)
        (home / "model" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
        settings = {
            "inference_address": f"http://127.0.0.1:{self.port}",
            "management_address": f"http://127.0.0.1:{self.port}",
            "load_models": f"model::Python:*=file://{home}/model",
        } | config
        text = "".join(f"{key}={value.format(home=home)}\n" for key, value in settings.items())
        (home / "config.properties").write_text(text)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home / "server"),
            "LANG": "C.UTF-8",
            "JAVA_OPTS": f"-Djava.io.tmpdir={self.tmp}",
            "MODEL_SERVER_HOME": str(home / "server"),
            "DJL_CACHE_DIR": str(home / "cache"),
            "DJL_OFFLINE": "true",
            "OPT_OUT_TRACKING": "true",
            "PYTHON_EXECUTABLE": str(python_of("serve")),
            "OPTION_ENGINE": "Python",
            "OPTION_ENTRYPOINT": str(home / "model.py"),
            "OPTION_ROLLING_BATCH": "disable",
            "SERVING_MIN_WORKERS": "1",
            "SERVING_MAX_WORKERS": "1",
            "CALLS": str(home / "calls"),
        } | env
        environment = {key: value for key, value in environment.items() if value != "unset"}
        with (home / "log").open("wb") as log:
            argv = [launcher, "-f", home / "config.properties"]
            self.process = subprocess.Popen(argv, env=environment, cwd=home, stdout=log, stderr=log)
        self.pythons: list[psutil.Process] = []

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def calls(self) -> list[dict]:
        return [json.loads(line) for line in (self.home / "calls").read_text().splitlines()]

    def ready(self) -> Server:
        wait_for(lambda: self.process.poll() is not None or self.listens(), 60)
        assert self.process.poll() is None, self.log()
        self.pythons = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def listens(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def request(self, method: str, path: str, body: bytes = b"", headers: dict | None = None, timeout=30) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.reason, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def post(self, path: str = "/invocations", headers: dict | None = None, timeout=30, **request) -> Answer:
        headers = {"Content-Type": "application/json"} | (headers or {})
        return self.request("POST", path, json.dumps(request).encode(), headers, timeout)

    def ping(self) -> tuple[int, dict]:
        answer = self.request("GET", "/ping")
        return answer.status, answer.json()

    def chunks(self, **request) -> Iterator[tuple[float, bytes]]:
        """The parts of a streamed answer, each with the seconds since the request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        began = time.monotonic()
        try:
            connection.request("POST", "/invocations", json.dumps(request), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.getheader("Transfer-Encoding") == "chunked"
            while part := response.read1(65536):
                yield time.monotonic() - began, part
        finally:
            connection.close()

    def send_and_leave(self, **request) -> None:
        """A client that goes away without waiting for the answer."""
        body = json.dumps(request).encode()
        head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as s:
            s.sendall(head.encode() + body)
            time.sleep(0.3)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for child in children:
                if child.is_running():
                    child.kill()
        shutil.rmtree(self.tmp, ignore_errors=True)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.fixture(scope="session")
def launcher() -> Path:
    return ensure(CACHE, lambda _: None) / "djl-serving"


@pytest.fixture
def start(launcher: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server; keyword arguments are environment variables. At the end nothing of it is left."""
    servers: list[Server] = []

    def starter(source: str = HANDLER, config: dict[str, str] | None = None, **env: str) -> Server:
        servers.append(Server(launcher, tmp_path / f"s{len(servers)}", source, env, config or {}))
        return servers[-1]

    yield starter
    for server in servers:
        server.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


# --- start ----------------------------------------------------------------------------------------


def test_the_port_is_bound_only_when_the_model_is_loaded(start):
    server = start(AT_INIT="time.sleep(2)")
    wait_for((server.home / "calls").exists, 30)
    time.sleep(0.5)
    assert not server.listens()
    assert server.ready().ping() == (200, HEALTHY)


def test_the_first_call_has_the_options_and_no_content(start):
    server = start(OPTION_MY_OWN="x", OPTION_camelCase="y", OPTION_EMPTY="", TENSOR_PARALLEL_DEGREE="2").ready()
    (first,) = server.calls()
    assert first["content"] == []
    assert first["props"] == {
        "my_own": "x",
        "camelCase": "y",
        "rolling_batch": "disable",
        "entryPoint": str(server.home / "model.py"),
        "engine": "Python",
        "minWorkers": "1",
        "maxWorkers": "1",
        "handler": "handle",
        "device_id": "-1",
        "cluster_size": 1,
        "model_dir": str(server.home / "model"),
        # Because the model directory has a config.json; not asked for by anyone.
        "max_rolling_batch_size": "32",
        "pipeline_parallel_degree": "1",
        "tensor_parallel_degree": "2",
    }


def test_a_model_store_is_the_model_when_it_holds_a_file(start):
    server = start(config={"load_models": "ALL", "model_store": "{home}/model"}).ready()
    assert server.ping() == (200, HEALTHY)
    assert server.calls()[0]["props"]["model_dir"] == str(server.home / "model")


def test_a_failing_first_call_ends_the_server(start):
    server = start(AT_INIT="raise ValueError('no such weights')")
    assert server.process.wait(60) == 1
    assert "Failed to initialize model" in server.log()
    assert "no such weights" in server.log()


def test_a_first_call_that_takes_too_long_ends_the_server(start):
    server = start(AT_INIT="time.sleep(60)", MODEL_LOADING_TIMEOUT="1")
    assert server.process.wait(60) == 1


def test_a_handler_that_cannot_be_imported_ends_the_server(start):
    server = start("import no_such_module")
    assert server.process.wait(60) == 1
    assert "no_such_module" in server.log()


def test_a_taken_port_ends_the_server(start):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = f"http://127.0.0.1:{s.getsockname()[1]}"
        server = start(SERVING_INFERENCE_ADDRESS=address, SERVING_MANAGEMENT_ADDRESS=address)
        assert server.process.wait(60) == 1
    assert "Failed to bind to address" in server.log()


# --- one request ----------------------------------------------------------------------------------


def test_headers_query_and_body_reach_the_handler(start):
    server = start().ready()
    headers = {
        "X-Amzn-SageMaker-Custom-Attributes": "trace=1; note = a=b ;nonsense",
        "x-request-id": "r-1",
        "Accept": "text/plain",
    }
    answer = server.post("/invocations?q=1&q=2", headers, op="echo", text="grüß")
    assert (answer.status, answer.body.decode()) == (200, "grüß")
    assert answer.headers["x-request-id"] == "r-1"
    call = server.calls()[1]
    assert call["content"][:2] == [["q", "1"], ["q", "2"]]
    assert call["content"][2][0] == "data"
    assert json.loads(call["content"][2][1]) == {"op": "echo", "text": "grüß"}
    length = str(len(json.dumps({"op": "echo", "text": "grüß"})))
    assert call["props"] == {
        "Accept": "text/plain",
        "Accept-Encoding": "identity",
        "Content-Length": length,
        "Content-Type": "application/json",
        "Host": f"127.0.0.1:{server.port}",
        "trace": "1",
        "note": "a=b",
        "x-request-id": "r-1",
        "requestId": "r-1",
        "handler": "handle",
        "device_id": "-1",
        "cluster_size": 1,
        "model_dir": str(server.home / "model"),
    }


def test_code_message_and_properties_become_the_response(start):
    server = start().ready()
    answer = server.post(op="output", properties={"Content-Type": "text/x", "X-Own": "1"}, body="hello")
    request_id = answer.headers.pop("x-request-id")
    assert len(request_id) == 36
    assert (answer.status, answer.reason, answer.body) == (200, "OK", b"hello")
    assert answer.headers == {
        "Content-Type": "text/x",
        "X-Own": "1",
        "content-length": "5",
        "connection": "keep-alive",
        "Pragma": "no-cache",
        "Cache-Control": "no-cache; no-store, must-revalidate, private",
        "Expires": "Thu, 01 Jan 1970 00:00:00 UTC",
    }
    assert "Content-Type" not in server.post(op="output").headers
    answer = server.post(op="output", code=429, message="slow down", body="{}")
    assert (answer.status, answer.reason, answer.body) == (429, "slow down", b"{}")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("output", [{"code": 422, "message": "a\nb"}, {"properties": {"X-Own": "a\nb"}}])
def test_a_newline_in_message_or_property_is_an_internal_error(start, output):
    answer = start().ready().post(op="output", **output)
    assert answer.status == 500
    assert answer.json()["type"] == "IllegalArgumentException"


def test_what_the_handler_raises_and_none(start):
    server = start().ready()
    answer = server.post(op="raise")
    assert (answer.status, answer.json()["error"]) == (424, "boom")
    assert server.request("POST", "/invocations", b"{nope").status == 424
    answer = server.post(op="none")
    assert (answer.status, answer.body) == (204, b"")
    assert server.ping() == (200, HEALTHY)


def test_errors_of_the_front_are_json(start):
    server = start().ready()
    answer = server.post("/nowhere", op="echo", text="")
    assert answer.status == 404
    assert answer.json() == {
        "code": 404,
        "type": "ResourceNotFoundException",
        "message": "Requested resource is not found, please refer to API document.",
    }
    answer = server.post(headers={"handler": "other"}, op="echo", text="")
    assert (answer.status, answer.json()["type"]) == (400, "BadRequestException")
    answer = server.post("/invocations?model_name=other", op="echo", text="")
    assert (answer.status, answer.json()["message"]) == (404, "Model or workflow not found: other")
    assert len(server.calls()) == 1


@pytest.mark.parametrize(("path", "status"), [("/ping/", 200), ("/ping/x", 200), ("/pings", 404), ("/metrics", 404)])
def test_what_lies_below_the_two_routes_is_theirs(start, path, status):
    server = start().ready()
    assert server.request("GET", path).status == status
    if status == 200:
        path = path.replace("ping", "invocations")
        assert server.request("POST", path, b'{"op": "echo", "text": "x"}').body == b"x"


def test_a_body_over_the_limit_is_refused(start):
    server = start(SERVING_MAX_REQUEST_SIZE="1000").ready()
    assert server.post(op="echo", text="x" * 900).status == 200
    assert server.post(op="echo", text="x" * 1000).status == 413
    assert len(server.calls()) == 2


def test_a_connection_is_kept_for_the_next_request(start):
    server = start().ready()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for text in ("one", "two"):
        connection.request("POST", "/invocations", json.dumps({"op": "echo", "text": text}))
        assert connection.getresponse().read() == text.encode()
        assert connection.sock is not None
    connection.close()


# --- streams --------------------------------------------------------------------------------------


def test_a_stream_arrives_part_by_part(start):
    parts = list(start().ready().chunks(op="stream", n=3, pause=0.5))
    assert [part for _, part in parts] == [b"part 0|", b"part 1|", b"part 2|"]
    assert parts[0][0] < 0.5 < parts[1][0] < 1 < parts[2][0]


def test_an_exception_in_a_stream_is_its_last_part_and_still_200(start):
    parts = [part for _, part in start().ready().chunks(op="stream", n=3, fail_at=1)]
    assert b"".join(parts).startswith(b"part 0|")
    assert b"boom" in b"".join(parts)


def test_a_client_that_leaves_a_stream_does_not_disturb_the_next(start):
    server = start().ready()
    stream = server.chunks(op="stream", n=10, pause=0.1)
    next(stream)
    stream.close()
    assert server.post(op="echo", text="next").body == b"next"


# --- the queue ------------------------------------------------------------------------------------


def test_requests_wait_for_the_one_worker_and_a_full_queue_is_503(start, pool):
    server = start(SERVING_JOB_QUEUE_SIZE="2").ready()
    first = pool.submit(server.post, op="sleep", seconds=1.5)
    wait_for(lambda: len(server.calls()) == 2, 10)
    second = pool.submit(server.post, op="echo", text="second")
    time.sleep(0.3)
    third = server.post(op="echo", text="third")
    assert third.status == 503
    assert third.json() == {
        "code": 503,
        "type": "WlmCapacityException",
        "message": "Worker queue capacity exceeded for model: model",
    }
    assert server.ping() == (200, HEALTHY)
    assert (first.result().body, second.result().body) == (b"slept", b"second")


def test_a_client_that_leaves_the_queue_never_reaches_the_handler(start, pool):
    server = start().ready()
    first = pool.submit(server.post, op="sleep", seconds=1.5)
    wait_for(lambda: len(server.calls()) == 2, 10)
    server.send_and_leave(op="echo", text="nobody waits")
    assert first.result().status == 200
    assert server.post(op="echo", text="after").status == 200
    assert len(server.calls()) == 3


# --- the worker's death ---------------------------------------------------------------------------


def test_a_timeout_fails_the_model_for_good(start, pool):
    server = start(OPTION_PREDICT_TIMEOUT="1").ready()
    first = pool.submit(server.post, op="sleep", seconds=30)
    wait_for(lambda: len(server.calls()) == 2, 10)
    waiting = pool.submit(server.post, op="echo", text="", timeout=4)
    answer = first.result()
    assert (answer.status, answer.json()["type"]) == (503, "WlmException")
    assert "TimeoutException" in answer.json()["message"]
    assert server.ping() == (500, FAILED)
    answer = server.post(op="echo", text="")
    assert (answer.status, answer.json()["message"]) == (503, "Model is not ready: model")
    with pytest.raises(TimeoutError):  # what waited in the queue is never answered
        waiting.result()
    wait_for(lambda: gone(server.pythons), 10)


def test_with_a_retry_threshold_the_ping_stays_healthy_without_a_worker(start):
    server = start(OPTION_PREDICT_TIMEOUT="1", SERVING_RETRY_THRESHOLD="10").ready()
    assert server.post(op="sleep", seconds=30).status == 503
    assert server.ping() == (200, HEALTHY)
    answer = server.post(op="echo", text="")
    assert (answer.status, answer.json()["type"]) == (503, "WlmCapacityException")


def test_a_handler_that_dies_in_a_request_fails_the_model(start):
    server = start().ready()
    answer = server.post(op="die")
    assert (answer.status, answer.json()["type"]) == (503, "WlmException")
    assert "Python worker disconnected." in answer.json()["message"]
    assert server.ping() == (500, FAILED)


def test_a_python_killed_while_idle_is_never_noticed_by_the_ping(start):
    server = start().ready()
    for process in server.pythons:
        process.kill()
    wait_for(lambda: gone(server.pythons), 10)
    time.sleep(0.5)
    answer = server.post(op="echo", text="")
    assert (answer.status, answer.json()["message"]) == (400, "Backend Python process is stopped.")
    assert server.ping() == (200, HEALTHY)


def test_servers_that_share_a_temporary_directory_kill_each_others_python(start):
    """Why each server gets a java.io.tmpdir of its own: DJL takes the other one for a leftover of its own."""
    first = start().ready()
    second = start(JAVA_OPTS=f"-Djava.io.tmpdir={first.tmp}").ready()
    wait_for(lambda: gone(first.pythons), 5)
    assert second.post(op="echo", text="mine").body == b"mine"


def test_fail_fast_ends_the_server(start):
    server = start(OPTION_PREDICT_TIMEOUT="1", SERVING_FAIL_FAST="true").ready()
    assert server.post(op="sleep", seconds=30).status == 503
    with pytest.raises(ConnectionError):
        server.ping()
    assert server.process.wait(10) == 137


# --- the rolling batch ----------------------------------------------------------------------------


def test_requests_join_the_rolling_batch(start, pool):
    server = start(ROLLING, OPTION_ROLLING_BATCH="custom").ready()
    began = time.monotonic()
    requests = [pool.submit(server.post, n=20, stream=False) for _ in range(4)]
    answers = [request.result() for request in requests]
    assert time.monotonic() - began < 2.5  # 20 steps of 0.05 s, once and not four times
    assert [answer.status for answer in answers] == [200] * 4
    assert {answer.headers["Content-Type"] for answer in answers} == {"text/x-rolling"}
    assert {int(answer.body) for answer in answers} <= {1, 2, 3, 4}
    assert max(int(answer.body) for answer in answers) == 4


def test_a_request_of_the_rolling_batch_streams(start):
    server = start(ROLLING, OPTION_ROLLING_BATCH="custom").ready()
    parts = list(server.chunks(n=10, stream=True))
    assert b"".join(part for _, part in parts) == b"1 " * 10
    assert len(parts) > 5
    assert parts[0][0] < parts[-1][0] - 0.3


def test_a_request_of_the_rolling_batch_fails_alone(start, pool):
    server = start(ROLLING, OPTION_ROLLING_BATCH="custom").ready()
    good = pool.submit(server.post, n=10, stream=False)
    answer = server.post(n=10, stream=False, fail_at=3)
    assert (answer.status, answer.reason) == (422, "not like this")
    assert answer.json() == {"code": 422, "error": "not like this"}
    assert good.result().status == 200


def test_the_rolling_batch_has_the_size_asked_for(start, pool):
    server = start(ROLLING, OPTION_ROLLING_BATCH="custom", OPTION_MAX_ROLLING_BATCH_SIZE="2").ready()
    streams = [pool.submit(lambda: b"".join(p for _, p in server.chunks(n=10, stream=True))) for _ in range(4)]
    sizes = [int(size) for stream in streams for size in stream.result().split()]
    assert len(sizes) == 40
    assert max(sizes) == 2


def test_two_workers_share_the_requests_and_answer_at_once(start, pool):
    """Each has a Python of its own; what one is at work on, the other does not wait for."""
    server = start(SERVING_MIN_WORKERS="2", SERVING_MAX_WORKERS="2").ready()
    assert len(server.pythons) == 2
    assert len(server.calls()) == 2, "both were initialised before the port was bound"
    began = time.monotonic()
    slept = [pool.submit(server.post, op="sleep", seconds=2) for _ in range(2)]
    assert [answer.result().status for answer in slept] == [200] * 2
    assert time.monotonic() - began < 3.9
    assert server.stop() == 143
    wait_for(lambda: gone(server.pythons), 3)


def test_two_workers_have_a_rolling_batch_each(start, pool):
    workers = {"SERVING_MIN_WORKERS": "2", "SERVING_MAX_WORKERS": "2"}
    server = start(ROLLING, OPTION_ROLLING_BATCH="custom", OPTION_MAX_ROLLING_BATCH_SIZE="2", **workers).ready()
    streams = [pool.submit(lambda: b"".join(p for _, p in server.chunks(n=20, stream=True))) for _ in range(4)]
    sizes = [int(size) for stream in streams for size in stream.result().split()]
    assert len(sizes) == 80
    assert max(sizes) == 2, "the limit is each worker's own"


# --- the end --------------------------------------------------------------------------------------


def test_term_ends_an_idle_server_and_its_worker(start):
    server = start().ready()
    assert server.pythons
    assert server.stop() == 143
    wait_for(lambda: gone(server.pythons), 3)


def test_term_cuts_what_is_in_flight(start, pool):
    server = start().ready()
    request = pool.submit(server.post, op="sleep", seconds=4)
    wait_for(lambda: len(server.calls()) == 2, 10)
    began = time.monotonic()
    assert server.stop() == 143
    assert time.monotonic() - began < 2
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        request.result()
    # A real server leaves the worker to finish its handler's work; the local front does not.
    wait_for(lambda: gone(server.pythons), 10 if REAL else 1)


def test_after_kill_the_idle_worker_ends_by_itself(start):
    server = start().ready()
    assert server.stop(signal.SIGKILL) == -9
    wait_for(lambda: gone(server.pythons), 3)


def test_python_writes_to_the_servers_standard_output_and_nothing_is_left_elsewhere(start):
    server = start().ready()
    server.post(op="echo", text="")
    assert server.stop() == 143
    (line,) = [line for line in server.log().splitlines() if line.endswith("the handler's first call")]
    assert "-model-stdout: " in line
    ours = {"model", "model.py", "config.properties", "log", "calls", "cache", "server"}
    assert {path.name for path in server.home.iterdir()} - {"__pycache__"} == ours


# --- the local front alone ------------------------------------------------------------------------


@pytest.mark.skipif(REAL, reason="a real server implements these, or ignores what it does not know")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVING_BATCH_SIZE", "4"),
        ("SERVING_MAX_WORKERS", "2"),
        ("SERVING_MAX_WORKERS", "unset"),
        ("SERVING_WAIT_MODEL_LOADING", "false"),
        ("SERVING_FEATURES", "vllm,tnx"),
        ("SERVING_NO_SUCH", "1"),
        ("SERVING_INFERENCE_ADDRESS", "https://127.0.0.1:1"),
        ("SERVING_LOAD_MODELS", "a=file:///x,b=file:///y"),
        ("OPTION_ENGINE", "MPI"),
        ("OPTION_ROLLING_BATCH", "unset"),
        ("OPTION_ROLLING_BATCH", "auto"),
        ("OPTION_ASYNC_MODE", "true"),
        ("OPTION_MODEL_ID", "s3://bucket/model"),
        ("ARGS_ANY", "1"),
        ("HF_MODEL_ID", "org/model"),
        ("MODEL_SERVER_HOME", "/no/such/directory"),
    ],
)
def test_what_is_not_implemented_is_refused_in_one_line(start, name, value):
    server = start(**{name: value})
    assert server.process.wait(30) == 1
    (line,) = server.log().splitlines()
    assert line.startswith("djl-serving: ")
    assert (value if name == "MODEL_SERVER_HOME" else name.removeprefix("SERVING_").lower()) in line.lower()
    assert not (server.home / "calls").exists()


@pytest.mark.skipif(REAL, reason="a real server implements these")
def test_requests_that_are_not_implemented_are_refused(start):
    server = start().ready()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.request("POST", "/invocations", b"a=b", form).status == 415
    assert server.post(headers={"x-synchronous": "false"}, op="echo", text="").status == 501
    assert len(server.calls()) == 1


@pytest.mark.skipif(REAL, reason="a real server reads it")
def test_a_serving_properties_in_the_model_directory_is_refused(start, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "serving.properties").write_text("batch_size=4\n")
    server = start(SERVING_LOAD_MODELS=f"model::Python:*=file://{tmp_path}/other")
    assert server.process.wait(30) == 1
    assert "serving.properties" in server.log()
