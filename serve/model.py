"""The handler that DJL Serving calls: the only file that imports djl_python.

DJL executes this file up to three times while it looks for hooks, so importing it does nothing: the engine is
made by the first call, which DJL sends empty, with the options as properties.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from djl_python import Input, Output

from containers import drain
from serve import engines
from serve.options import ServeOptions, from_properties
from serve.protocols import errors, lmi
from serve.protocols.errors import RequestError


@lru_cache(maxsize=1)
def _engine(name: str, model_dir: str, options: ServeOptions) -> engines.Engine:
    return engines.load(name, Path(model_dir), options)


@lru_cache(maxsize=1)
def _state() -> dict[str, Any]:
    """What the INIT call said; later calls carry no options."""
    return {}


def handle(inputs: Input) -> Output | None:
    """DJL's entry point: None answers the INIT call, an Output everything else."""
    if inputs.is_empty():
        properties = inputs.get_properties()
        options = from_properties(properties)
        name = properties.get("serve_engine", "neuron")
        _state()["engine"] = _engine(name, properties["model_dir"], options)
        print(f"handler ready: engine {name}, {options}", flush=True)
        return None
    if drain.stopping():
        return _json(503, errors.body(503, "this server is being stopped; send the request again"))
    try:
        with drain.in_progress():
            return _answer(_state()["engine"], lmi.parse(inputs.get_as_bytes()))
    except RequestError as error:
        return _json(error.status, errors.body(error.status, str(error)))
    except Exception as error:  # noqa: BLE001 (the client gets one line; the log gets the traceback)
        import traceback

        traceback.print_exc()
        return _json(500, errors.body(500, f"{type(error).__name__}: {error}".splitlines()[0]))


def _answer(engine: engines.Engine, request: lmi.Request) -> Output:
    if not request.stream:
        return _json(200, lmi.render(request, engine.generate(request.prompts, request.parameters)))
    pieces = engine.stream(request.prompts[0], request.parameters)
    first = next(pieces)  # raises here, with a status of its own, rather than inside a stream of status 200
    output = Output()
    output.add_property("Content-Type", "application/jsonlines")
    output.add_stream_content(drain.streamed(_lines(first, pieces)), output_formatter=lambda line: line)
    return output


def _lines(first: str | lmi.Generation, rest: Iterator[str | lmi.Generation]) -> Iterator[bytes]:
    """JSON lines; a failure in mid-stream is a last line with `error`, since the status is already sent."""
    try:
        yield _line(first)
        for piece in rest:
            yield _line(piece)
    except Exception as error:  # noqa: BLE001
        yield errors.body(500, f"{type(error).__name__}: {error}".splitlines()[0]) + b"\n"


def _line(piece: str | lmi.Generation) -> bytes:
    return lmi.stream_piece(piece) if isinstance(piece, str) else lmi.stream_end(piece)


def _json(status: int, body: bytes) -> Output:
    # The message becomes the HTTP reason phrase, where a newline would break the response: it stays constant.
    output = Output(status, "OK" if status < 400 else "refused")
    output.add_property("Content-Type", "application/json")
    output.add(body)
    return output
