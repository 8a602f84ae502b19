"""The serving options: one dataclass that makes the endpoint's environment and parses DJL's INIT call.

The harness writes them into CreateModel's Environment as OPTION_<NAME>; DJL hands them to the handler as
properties without the prefix, once, with the first (empty) call. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from containers.contract import ANSWER_DEADLINE, INVOCATION_TIMEOUT, STREAM_DEADLINE, STREAM_TIMEOUT

PREFIX = "OPTION_"
# What DJL calls an option where we use the field's own term.
DJL_NAMES = {"tp_degree": "tensor_parallel_degree"}
ENGINES = ("cpu", "neuron")
DTYPES = ("bf16", "fp16", "fp32")

# Options that DJL Serving itself acts on (PyModel, PyEnv, WorkLoadManager of 0.30 to 0.36), or that its launcher and
# ours set: they pass.
_DJLS_OWN = (
    "engine",
    "entrypoint",
    "env",
    "handler",
    "model_id",
    "model_loading_timeout",
    "parallel_loading",
    "pipeline_parallel_degree",
    "predict_timeout",
    "pythonexecutable",
    "rolling_batch",
    "max_rolling_batch_size",
    "serve_engine",
)
# Options of LMI and of the removed Neuron handler that mean something there and nothing here: the values that ask for
# nothing, and what to do instead. docs.djl.ai/master/docs/serving/serving/docs/lmi/user_guides/tnx_user_guide.html
_NOT_HERE: Mapping[str, tuple[tuple[str, ...], str]] = {
    "amp": ((), "use OPTION_DTYPE"),
    "async_mode": (("false",), "the handler uses DJL's rolling batch"),
    "attention_layout": ((), "layouts are the library's defaults"),
    "batch_size": (("1",), "use OPTION_MAX_BATCH_SIZE"),
    "cache_layout": ((), "layouts are the library's defaults"),
    "collectives_layout": ((), "layouts are the library's defaults"),
    "compiled_graph_path": ((), "serve a prepared artifact: `python -m serve.prepare`"),
    "context_length_estimate": ((), "buckets follow from OPTION_N_POSITIONS"),
    "draft_model_id": ((), "there is no speculative decoding"),
    "enable_lora": (("false",), "merge adapters into the model first"),
    "enable_streaming": (("false",), "a request asks for it: `stream`"),
    "fuse_mlp": (("false",), "fusing is the library's default"),
    "fuse_qkv": (("false",), "fusing is the library's default"),
    "group_query_attention": ((), "it follows from the model's config.json"),
    "load_in_8bit": (("false",), "weights are served as OPTION_DTYPE"),
    "load_split_model": (("false",), "serve safetensors"),
    "low_cpu_mem_usage": (("true", "false"), "weights are read one tensor at a time"),
    "max_model_len": ((), "use OPTION_N_POSITIONS"),
    "model_loader": (("tnx",), "the engine is transformers-neuronx, or the CPU"),
    "mpi_mode": (("false",), "one process drives all cores"),
    "neuron_optimize_level": ((), "set NEURON_CC_FLAGS"),
    "on_device_embedding": (("false",), "not supported"),
    "on_device_generation": ((), "where tokens are chosen follows from the requests"),
    "output_formatter": ((), "the form follows from the request: docs/requests.md"),
    "quantize": ((), "weights are served as OPTION_DTYPE"),
    "revision": ((), "the model comes with the endpoint's model data"),
    "rolling_batch_strategy": (("continuous_batching",), "it is continuous batching"),
    "save_mp_checkpoint_path": ((), "serve a prepared artifact: `python -m serve.prepare`"),
    "speculative_draft_model": ((), "there is no speculative decoding"),
    "speculative_length": (("0",), "there is no speculative decoding"),
    "task": (("text-generation",), "the handler generates text"),
    "trust_remote_code": (("false",), "code that comes with a model is not run"),
    "unroll": ((), "not supported"),
}


class OptionError(ValueError):
    """Options are wrong; one line that names each of them."""


@dataclass(frozen=True)
class ServeOptions:
    """How an endpoint serves. Every default has its reason beside it."""

    tp_degree: int = 1
    """NeuronCores that share one copy of the model. 1 fits models up to about 6 B parameters in bf16 (16 GiB)."""
    n_positions: int = 1024
    """Tokens of prompt and answer together. A static shape on Inferentia: compile time and memory grow with it."""
    dtype: str = "bf16"
    """Number format of the weights. bf16 keeps fp32's range, so nothing overflows that trained in bf16."""
    max_batch_size: int = 32
    """Prompts answered together. 32 keeps the step of a 1 B model memory-bound on one Inferentia2 chip."""
    answer_timeout: int = ANSWER_DEADLINE
    """Seconds for an answer that does not stream; it then ends with what there is. Below SageMaker's 60 s."""
    stream_timeout: int = STREAM_DEADLINE
    """Seconds for a whole stream; it then ends with what there is. Below SageMaker's 8 minutes."""
    replicas: int = 1
    """Copies of the model on device cpu, each in its own process. On Neuron DJL loads cores / tp_degree copies."""
    tgi_compat: bool = False
    """Answers to LMI's requests as TGI gives them: lists, and streams of events. False: the schema is DJL's own."""

    def __post_init__(self) -> None:
        whole = {f.name: getattr(self, f.name) for f in fields(self) if f.type == "int"}
        problems = [f"{name} is {value}; it must be at least 1" for name, value in whole.items() if value < 1]
        for name, limit in (("answer_timeout", INVOCATION_TIMEOUT), ("stream_timeout", STREAM_TIMEOUT)):
            if whole[name] >= limit:
                problems.append(f"{name} is {whole[name]}; it must be below SageMaker's own {limit} s")
        if self.dtype not in DTYPES:
            problems.append(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        _raise(problems)


def names() -> list[str]:
    """Every option's name, as run files write it."""
    return [f.name for f in fields(ServeOptions)]


def to_environment(options: ServeOptions) -> dict[str, str]:
    """CreateModel's Environment: OPTION_TENSOR_PARALLEL_DEGREE and so on, every one written out."""
    values = {DJL_NAMES.get(name, name): getattr(options, name) for name in names()}
    return {PREFIX + k.upper(): str(v).lower() if isinstance(v, bool) else str(v) for k, v in values.items()}


def from_properties(properties: Mapping[str, Any]) -> ServeOptions:
    """Parse what the INIT call carries; properties that are DJL's own are let pass.

    Raises OptionError naming every value that is wrong.
    """
    values: dict[str, Any] = {}
    problems = []
    for f in fields(ServeOptions):
        text = properties.get(DJL_NAMES.get(f.name, f.name))
        if text is None:
            continue
        try:
            values[f.name] = _PARSERS[str(f.type)](str(text))
        except ValueError as error:
            problems.append(f"{f.name} is {text!r}; {error}")
    try:
        options = ServeOptions(**values)
    except OptionError as error:
        problems.append(str(error))
    _raise(problems)
    return options


def check_environment(environ: Mapping[str, str]) -> None:
    """Raises OptionError naming every OPTION_ variable that has no effect here, with what was meant or what helps.

    The environment rather than the INIT call's properties, to which DJL adds its own.
    """
    known = {DJL_NAMES.get(name, name) for name in names()}
    problems = []
    for variable, value in sorted(environ.items()):
        name = variable[len(PREFIX) :].lower()
        if not variable.startswith(PREFIX) or not value or name in known or name in _DJLS_OWN:
            continue
        if name in _NOT_HERE:
            neutral, instead = _NOT_HERE[name]
            if value.lower() not in neutral:
                problems.append(f"{variable}={value:.40} has no effect here: {instead}")
            continue
        meant = DJL_NAMES.get(name) or next(iter(get_close_matches(name, [*known, *_DJLS_OWN], n=1)), "")
        problems.append(f"{variable} is not known" + (f"; did you mean {PREFIX}{meant.upper()}?" if meant else ""))
    _raise(problems)


def _raise(problems: Iterable[str]) -> None:
    text = "; ".join(problems)
    if text:
        raise OptionError(text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number expected") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false expected")
    return text.lower() == "true"


_PARSERS: Mapping[str, Any] = {"int": _whole, "bool": _flag, "str": str}
