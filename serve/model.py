"""The handler that DJL Serving calls: the only file that imports djl_python. Runs on 0.30 and 0.34 alike.

DJL executes this file up to three times while it looks for hooks, so importing it does nothing: the engine is
made by the first call, which DJL sends empty, with the options as properties. Every later call is a step of the
rolling batch (serve/rolling.py), whatever number of requests are active.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from djl_python import Input, Output

from containers import drain, health
from serve import engines, service
from serve.options import OptionError, check_environment, from_properties
from serve.rolling import Frame, Part, RollingBatch

_state: dict[str, Any] = {}
"""What the first call made; later calls carry no options."""


def handle(inputs: Input) -> Output | None:
    """DJL's entry point: None answers the first call, an Output with a frame for each request everything else."""
    if "batch" not in _state:
        try:
            _state.update(_started(inputs.get_properties()))
        except Exception as error:
            health.start_failed(error)
            raise
        return None
    batch: RollingBatch = _state["batch"]
    if inputs.get_property("reset_rollingbatch"):
        batch.reset()
    parts = inputs.get_batches()
    _state["in_progress"].hold()
    with _state["pulse"].step() if _state["pulse"] else service.nothing():
        frames = batch.step(len(parts), [_part(part) for part in parts[batch.known :]], drain.stopping())
    if not batch.known:
        _state["in_progress"].let_go()  # DJL's half second to send the last answers is PID 1's business
    batch.metrics.flush()
    return _output(frames)


def _started(properties: dict[str, str]) -> dict[str, Any]:
    if properties.get("rolling_batch") != "custom":
        raise OptionError(f"rolling_batch is {properties.get('rolling_batch')!r}; this handler needs custom")
    check_environment(os.environ)
    options = from_properties(properties)
    engine = engines.load(properties.get("serve_engine", "neuron"), Path(properties["model_dir"]), options)
    print(engine.description, flush=True)
    batch, slowest = service.start(engine, options, os.environ.get("SERVING_PROMETHEUS") == "true")
    print(f"handler ready: engine {properties.get('serve_engine', 'neuron')}, {options}", flush=True)
    return {"batch": batch, "in_progress": drain.InProgress(), "pulse": health.pulse(slowest)}


def _part(part: Input) -> Part:
    headers = {str(name).lower(): str(value) for name, value in part.get_properties().items()}
    return Part(bytes(part.get_as_bytes() or b""), headers)


def _output(frames: list[Frame]) -> Output:
    output = Output()
    for i, frame in enumerate(frames):
        content: dict[str, Any] = {"data": frame.data.decode(), "last": frame.last}
        if frame.status:
            content.update(code=frame.status, error=frame.error)
        if frame.content_type:
            output.add_property(f"batch_{i}_Content-Type", frame.content_type)
        output.add(Output.binary_encode(content), batch_index=i)
    return output
