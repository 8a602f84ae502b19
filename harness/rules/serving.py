"""serving.properties of DJL and flags of vLLM: what starts and then does something else than it says."""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import did_you_mean
from harness.rules.document import ARG, CALL, ENV, PROPERTY, Document, Fact, setting_name, truthy, whole_number
from harness.rules.known import first_generation, images, instances
from harness.rules.rule import ERROR, NOTE, WARNING, rule

DJL = "https://github.com/deepjavalibrary/djl-serving"

# Keys of a Python model with Neuron options, DJL Serving 0.24 to 0.34 (serving/docs/lmi, wlm's ModelInfo).
KNOWN = (
    "all_reduce_dtype", "amp", "async_mode", "attention_layout", "batch_size", "cache_layout",
    "cast_logits_dtype", "collectives_layout", "compiled_graph_path", "context_length_estimate", "device_map",
    "do_sample", "draft_model_tp_size", "dtype", "enable_streaming", "enable_venv", "entryPoint", "env",
    "fuse_mlp", "fuse_qkv", "gpu_memory_utilization", "group_query_attention", "handler", "load_format",
    "load_in_8bit", "load_split_model", "low_cpu_mem_usage", "max_batch_delay", "max_model_len",
    "max_output_size", "max_rolling_batch_prefill_tokens", "max_rolling_batch_size", "max_tokens", "model_id",
    "model_loader", "model_loading_timeout", "mpi_mode", "n_positions", "neuron_optimize_level",
    "on_device_embedding", "on_device_generation", "output_formatter", "paged_attention", "parallel_loading",
    "partition_handler", "partition_schema", "pipeline_parallel_degree", "predict_timeout", "prompt_formatter",
    "pythonExecutable", "qkv_tiling", "quantization", "quantize", "return_dict_in_generate", "revision",
    "rolling_batch", "rolling_batch_strategy", "s3url", "save_mp_checkpoint_path", "sequence_parallel_norm",
    "sequence_parallel_norm_threshold", "shard_over_sequence", "sparse_attn", "speculative_draft_model",
    "speculative_length", "task", "tensor_parallel_degree", "tgi_compat", "tokenizer", "trust_remote_code",
    "unroll", "url", "use_passive_workers", "waiting_steps", "weight_tiling",
)  # fmt: skip


def djl_facts(document: Document) -> list[Fact]:
    return [f for f in document.all(PROPERTY) if f.name.startswith("option.")]


def neuron_properties(document: Document) -> bool:
    """Properties that are for Neuron: by a neuron key, image or instance in the same file."""
    names = {setting_name(f) for f in djl_facts(document)}
    keys = {"n_positions", "neuron_optimize_level", "context_length_estimate", "load_split_model", "amp"}
    entry = any("neuronx" in f.value for f in document.settings("entrypoint"))
    return bool(names & keys) or entry or any(i.is_djl for i in images(document))


@rule(
    "serving-unknown-option",
    WARNING,
    "an option that DJL Serving's Python engine does not know",
    "unknown options reach the handler and are otherwise ignored",
    f"{DJL}/blob/0.30.0-dlc/serving/docs/lmi/user_guides/tnx_user_guide.md",
)
def serving_unknown_option(document: Document) -> Iterator[tuple[int, str]]:
    if not neuron_properties(document):
        return
    names = {k.lower(): k for k in KNOWN}
    for fact in djl_facts(document):
        name = fact.name.removeprefix("option.")
        if name.lower() not in names:
            hint = did_you_mean(name, sorted(KNOWN))
            if hint:  # another's own option is theirs; a near miss is a mistake
                yield fact.line, f"option.{name}: {hint}"


@rule(
    "serving-handler-gone",
    ERROR,
    "DJL Serving has no Neuron handler any more",
    "djl-inference:0.30.0-neuronx-sdk2.20.1 is the last image that has it; or bring a handler of your own",
    f"{DJL}/pull/2939",
)
def serving_handler_gone(document: Document) -> Iterator[tuple[int, str]]:
    newer = [i for i in images(document) if i.is_djl and i.server and i.server >= (0, 35)]
    for fact in document.settings("entrypoint"):
        if "transformers_neuronx" in fact.value and newer:
            yield fact.line, f"{fact.value} with {newer[0].repository}:{newer[0].tag}"


@rule(
    "serving-rolling-batch-chosen",
    WARNING,
    "a handler of your own, and DJL may choose rolling batch for it",
    "set option.rolling_batch=disable, or implement the protocol and set a name of your own",
    f"{DJL}/issues/1173",
)
def serving_rolling_batch_chosen(document: Document) -> Iterator[tuple[int, str]]:
    """With config.json beside the handler the image's recommender takes tnx: requests then hang, /ping is healthy."""
    entries = [f for f in document.settings("entrypoint") if f.kind == PROPERTY]
    own = [f for f in entries if not f.value.startswith("djl_python.")]
    engine = [f for f in document.all(PROPERTY, "engine") if f.value.lower() == "python"]
    if neuron_properties(document) and not document.settings("rolling_batch"):
        for fact in own or ([] if entries else engine):
            yield (
                fact.line,
                "no option.rolling_batch: with config.json in the model's directory the image chooses tnx",
            )


@rule(
    "serving-engine-mpi",
    WARNING,
    "MPI mode is not for Neuron",
    "engine=Python: one process drives all cores of its group",
    f"{DJL}/blob/0.30.0-dlc/serving/docs/lmi/user_guides/tnx_user_guide.md",
)
def serving_engine_mpi(document: Document) -> Iterator[tuple[int, str]]:
    if neuron_properties(document):
        for fact in [*document.all(PROPERTY, "engine"), *document.settings("mpi_mode")]:
            if fact.value.lower() == "mpi" or (setting_name(fact) == "mpi_mode" and truthy(fact.value)):
                yield fact.line, f"{fact.name}={fact.value}"


@rule(
    "serving-two-workers",
    WARNING,
    "several workers on the same NeuronCores",
    "minWorkers and maxWorkers at most cores / tensor_parallel_degree",
    f"{DJL}/issues/1079",
)
def serving_two_workers(document: Document) -> Iterator[tuple[int, str]]:
    degrees = [n for f in document.settings("tensor_parallel_degree") if (n := whole_number(f.value))]
    cores = max((i.cores for _, i in instances(document)), default=0)
    for fact in document.settings("minworkers", "maxworkers"):
        count = whole_number(fact.value)
        if count and cores and degrees and count * max(degrees) > cores:
            yield fact.line, f"{count} workers of TP {max(degrees)} on {cores} cores"


@rule(
    "serving-ready-too-early",
    WARNING,
    "/ping says healthy before the model is loaded",
    "leave SERVING_WAIT_MODEL_LOADING at its default, true",
    f"{DJL}/blob/master/serving/docs/configurations_global.md",
)
def serving_ready_too_early(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.facts:
        if (
            fact.name == "SERVING_WAIT_MODEL_LOADING"
            and fact.kind == ENV
            and fact.value.strip("\"'").lower() == "false"
        ):
            yield fact.line, "SageMaker will send requests to an endpoint that cannot answer"


@rule(
    "serving-predict-timeout",
    WARNING,
    "longer than SageMaker waits",
    "below 60 s for answers in one piece: then the client gets the server's reason",
    "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html",
)
def serving_predict_timeout(document: Document) -> Iterator[tuple[int, str]]:
    streams = any(f.value not in ("disable", "") for f in document.settings("rolling_batch", "enable_streaming"))
    for fact in document.settings("predict_timeout"):
        seconds = whole_number(fact.value)
        if seconds and seconds > 60 and not streams:
            yield fact.line, f"predict_timeout {seconds}; InvokeEndpoint gives up after 60 s"


@rule(
    "serving-optimize-level",
    ERROR,
    "not one of the compiler's levels",
    "set it to 1, 2 or 3",
    "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/neuronx-cc/api-reference-guide/neuron-compiler-cli-reference-guide.html",
)
def serving_optimize_level(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings("neuron_optimize_level"):
        level = whole_number(fact.value)
        if level is not None and level not in (1, 2, 3):
            yield fact.line, f"{fact.name}={fact.value}"


@rule(
    "serving-two-models",
    WARNING,
    "a hub id and a model of one's own at once",
    "one of them: with both DJL loads two models and answers 400 'Parameter model_name is required'",
    f"{DJL}/blob/0.30.0-dlc/serving/docs/lmi/deployment_guide/deploying-your-endpoint.md",
)
def serving_two_models(document: Document) -> Iterator[tuple[int, str]]:
    if not any(i.is_djl for i in images(document)):
        return
    hub = [f for f in document.facts if f.kind == ENV and f.name == "HF_MODEL_ID"]
    data = [f for f in document.settings("model_data", "modeldataurl") if f.value.startswith("s3://")]
    for fact in hub:
        if data:
            yield fact.line, f"HF_MODEL_ID={fact.value} and model data {data[0].value}"


@rule(
    "serving-default-length",
    WARNING,
    "vLLM on Neuron takes the model's whole length unless told otherwise",
    "set --max-model-len and --max-num-seqs: the cache is allocated for both at the start",
    "https://github.com/vllm-project/vllm/issues/6452",
)
def serving_default_length(document: Document) -> Iterator[tuple[int, str]]:
    if serves_with_vllm(document) and not document.settings("max_model_len"):
        for fact in vllm_starts(document)[:1]:
            yield fact.line, "no --max-model-len"


def vllm_starts(document: Document) -> list[Fact]:
    """Lines that start vLLM's server for Neuron."""
    flags = [f for f in document.all(ARG, "device") if f.value == "neuron"]
    tp = document.all(ARG, "tensor_parallel_size")
    return flags or (tp if serves_with_vllm(document) else [])


def serves_with_vllm(document: Document) -> bool:
    text = document.text
    starts = "vllm serve" in text or "vllm.entrypoints" in text or '"vllm", "serve"' in text
    return starts and ("neuron" in text.lower()) and document.kind in ("shell", "dockerfile", "yaml", "notebook")


@rule(
    "vllm-flag-removed",
    ERROR,
    "this vLLM has no such flag",
    "the Neuron plugin finds the device itself; overrides go into --additional-config",
    "https://github.com/helixml/helix/pull/2663",
)
def vllm_flag_removed(document: Document) -> Iterator[tuple[int, str]]:
    newest = max((i.server for i in images(document) if i.is_vllm and i.plain_aws and i.server), default=None)
    if newest is None or newest < (0, 16):
        return
    for fact in document.all(ARG, "device", "override_neuron_config"):
        if fact.name != "device" or fact.value == "neuron":
            yield fact.line, f"--{fact.name.replace('_', '-')} with vLLM {'.'.join(map(str, newest))}"


@rule(
    "vllm-swap-space",
    WARNING,
    "vLLM's default CPU swap kills a small host",
    "--swap-space 0 on inf2.xlarge and trn1.2xlarge",
    "https://github.com/helixml/helix/pull/2663",
)
def vllm_swap_space(document: Document) -> Iterator[tuple[int, str]]:
    small = [(f, i) for f, i in instances(document) if i.host_gib <= 32]
    if small and serves_with_vllm(document) and not document.settings("swap_space"):
        fact, instance = small[0]
        yield fact.line, f"{fact.value} has {instance.host_gib} GiB, and no --swap-space is given"


@rule(
    "vllm-prefix-caching",
    ERROR,
    "prefix caching is not supported on trn1 and inf2",
    "leave it out; it works from trn2 on",
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/1304",
)
def vllm_prefix_caching(document: Document) -> Iterator[tuple[int, str]]:
    where = first_generation(document)
    if where is None or not serves_with_vllm(document):
        return
    for fact in document.all(ARG, "enable_prefix_caching"):
        if truthy(fact.value) or fact.value.startswith("-"):
            yield fact.line, f"--enable-prefix-caching on {where.value}: NCC_ITEN404"


@rule(
    "vllm-speculative-decoding",
    ERROR,
    "speculative decoding is not supported on trn1 and inf2",
    "leave it out; the tutorial is for trn2",
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/1143",
)
def vllm_speculative_decoding(document: Document) -> Iterator[tuple[int, str]]:
    where = first_generation(document)
    if where is None or not serves_with_vllm(document):
        return
    for fact in document.all(ARG, "speculative_model", "speculative_config", "num_speculative_tokens")[:1]:
        yield fact.line, f"--{fact.name.replace('_', '-')} on {where.value}"


@rule(
    "serving-compile-at-start",
    NOTE,
    "every start compiles",
    "bake the compiled graphs into the artifact or image, with exactly the settings that serve",
    "https://github.com/huggingface/optimum-neuron/issues/730",
)
def serving_compile_at_start(document: Document) -> Iterator[tuple[int, str]]:
    entry = [f for f in document.settings("entrypoint") if "transformers_neuronx" in f.value and f.kind == PROPERTY]
    given = document.settings("compiled_graph_path", "load_split_model")
    if entry and not given and not document.all(CALL, "partition"):
        yield entry[0].line, "no option.compiled_graph_path: the endpoint compiles when it starts, each time"
