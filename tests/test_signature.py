"""What train/signature.py refuses before the first step, and what train/launch.py starts; numpy, no torch."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from containers import families
from containers.contract import Resources
from train import launch, signature
from train.signature import Layout, SignatureError

TINYLLAMA = SimpleNamespace(
    num_attention_heads=32,
    num_key_value_heads=4,
    vocab_size=32000,
    intermediate_size=5632,
    num_hidden_layers=22,
    max_position_embeddings=2048,
)
SMOLLM2 = SimpleNamespace(
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    intermediate_size=1536,
    num_hidden_layers=30,
    max_position_embeddings=8192,
)


def changed(config: SimpleNamespace, **more: int) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(config), **more})


def rules(layout: Layout, config: Any = TINYLLAMA, block: int = 512) -> str:
    return "\n".join(signature.rule_problems(layout, config, block))


def batches(*rows: int, width: int = 8, dtype: type = np.int64) -> list[dict[str, Any]]:
    return [{"input_ids": np.zeros((n, width), dtype), "labels": np.zeros((n, width), np.int64)} for n in rows]


def test_a_checkpoint_that_is_written_while_training_goes_on_is_refused() -> None:
    asked = SimpleNamespace(
        per_device_train_batch_size=1, per_device_eval_batch_size=1, gradient_accumulation_steps=1, async_save=True
    )
    for static in (True, False):
        assert "async_save goes on training before" in rules(Layout.of(asked, static))
    asked.async_save = False
    assert rules(Layout.of(asked, True)) == ""


# -- what divides what -------------------------------------------------------------------------------------------


def test_tinyllama_on_the_two_cores_of_a_trn1_2xlarge_fits() -> None:
    assert rules(Layout(tensor=2, sequence_parallel=True, world=2)) == ""


def test_smollm2_has_nine_heads_and_cannot_do_tensor_parallelism_of_two() -> None:
    text = rules(Layout(tensor=2, world=2), SMOLLM2)
    assert "tensor_parallel_size 2 does not divide the model's attention heads (9): use one of 1, 3" in text
    assert "key-value heads (3): neither divides the other; use one of 1, 3" in text
    assert rules(Layout(tensor=3, world=3), SMOLLM2) == ""


@pytest.mark.parametrize(
    ("config", "layout", "block", "expected"),
    [
        ({"vocab_size": 32001}, {"tensor": 2}, 512, "vocabulary (32001)"),
        ({"intermediate_size": 5633}, {"tensor": 2}, 512, "intermediate size (5633)"),
        ({"num_attention_heads": 30, "num_key_value_heads": 5}, {"tensor": 2}, 512, "key-value heads (5)"),
        ({"num_attention_heads": 31}, {"tensor": 2}, 512, "attention heads (31)"),
        ({}, {"tensor": 2, "sequence_parallel": True}, 511, "set block_size 512, or disable_sequence_parallel true"),
        (
            {},
            {"pipeline": 4},
            512,
            "pipeline_parallel_size 4 does not divide the model's 22 layers: use one of 1, 2, 11, 22",
        ),
        (
            {},
            {"pipeline": 2, "batch": 4, "eval_batch": 3, "microbatches": 3},
            512,
            "set per_device_train_batch_size to a multiple of 3",
        ),
        (
            {},
            {"pipeline": 2, "batch": 3, "eval_batch": 4, "microbatches": 3},
            512,
            "set per_device_eval_batch_size to",
        ),
        ({}, {"tensor": 4, "world": 2}, 512, "2 cores are no multiple of tensor_parallel_size 4 x"),
        ({}, {}, 4096, "block_size 4096 exceeds the model's 2048 positions: set block_size 2048"),
    ],
)
def test_each_rule(config: dict[str, int], layout: dict[str, Any], block: int, expected: str) -> None:
    wanted = Layout(**{"world": layout.get("tensor", 1) * layout.get("pipeline", 1), **layout})
    text = rules(wanted, changed(TINYLLAMA, **config), block)
    assert expected in text
    assert len(text.splitlines()) == 1, text


@pytest.mark.parametrize(("tensor", "fine"), [(2, True), (4, True), (8, True), (16, True), (32, True), (3, False)])
def test_key_value_heads_may_be_fewer_than_cores_when_they_divide_them(tensor: int, fine: bool) -> None:
    assert (rules(Layout(tensor=tensor, world=8 * tensor)) == "") is fine


@pytest.mark.parametrize(
    ("world", "pipeline", "fine"), [(32, 1, True), (64, 2, True), (4, 1, False), (8, 1, False), (32, 2, False)]
)
def test_groups_of_four_cores_come_eight_at_a_time(world: int, pipeline: int, fine: bool) -> None:
    text = "\n".join(signature.layout_problems(Layout(tensor=4, pipeline=pipeline, world=world)))
    assert ("use tensor_parallel_size 2 or 8" in text) is not fine


def test_a_row_length_that_does_not_divide_is_no_problem_without_sequence_parallelism() -> None:
    assert rules(Layout(tensor=2, world=2, sequence_parallel=False), block=511) == ""


@pytest.mark.parametrize(("rows", "problems"), [(64, 0), (63, 1)])
def test_a_step_takes_batch_times_accumulation_times_data_parallel_rows(rows: int, problems: int) -> None:
    layout = Layout(batch=4, accumulation=2, tensor=2, world=16)
    assert layout.data == 8
    assert len(signature.row_problems(layout, rows)) == problems
    assert signature.row_problems(dataclasses.replace(layout, static=False), rows) == []


# -- one signature -----------------------------------------------------------------------------------------------


def test_one_signature_over_the_whole_loader() -> None:
    assert signature.loader_problems("train", batches(4, 4, 4), static=True) == []
    assert signature.signature_of(batches(4)[0]) == (("input_ids", (4, 8), "int64"), ("labels", (4, 8), "int64"))


def test_a_shorter_last_batch_is_named() -> None:
    (line,) = signature.loader_problems("validation", batches(4, 4, 3), static=True)
    assert line.startswith(
        "validation: 1 of 3 batches have another shape: batch 3 of 3 (the last) is input_ids (3, 8)"
    )
    assert "dataloader_drop_last" in line


def test_a_shorter_last_batch_is_fine_on_a_device_without_static_shapes_and_only_the_last() -> None:
    assert signature.loader_problems("train", batches(4, 4, 3), static=False) == []
    assert signature.loader_problems("train", batches(4, 3, 4), static=False) != []


@pytest.mark.parametrize("static", [True, False])
def test_another_width_type_or_key_is_a_problem_on_every_device(static: bool) -> None:
    for odd in (batches(4, width=9), batches(4, dtype=np.int32), [{"input_ids": np.zeros((4, 8), np.int64)}]):
        assert len(signature.loader_problems("train", batches(4, 4) + odd, static)) == 1


def test_a_loader_without_batches_and_a_batch_without_tensors() -> None:
    assert "has no batch" in signature.loader_problems("train", [], static=True)[0]
    with pytest.raises(SignatureError, match="labels as a list"):
        signature.signature_of({"labels": [1, 2]})


def test_every_problem_is_reported_at_once_and_batches_are_read_before_the_device_loader() -> None:
    wrapped = SimpleNamespace(_loader=batches(4, 3))  # torch_xla's MpDeviceLoader keeps the host's loader there
    layout = Layout(batch=4, tensor=2, world=2)
    with pytest.raises(SignatureError) as caught:
        signature.check(layout, changed(SMOLLM2, vocab_size=49153), 8, 16, {"train": wrapped, "validation": []})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0][:12] for line in lines[-2:]] == ["train", "validation"]
    assert len(lines) == 5  # heads, vocabulary, key-value heads, and one for each loader
    assert all(": " in line for line in lines)
    signature.check(Layout(batch=4), SMOLLM2, 8, 16, {"train": batches(4, 4)})


def test_a_layout_from_training_arguments_of_both_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    plain = SimpleNamespace(
        per_device_train_batch_size=4, per_device_eval_batch_size=2, gradient_accumulation_steps=3
    )
    assert Layout.of(plain, static=False) == Layout(4, 2, 3, static=False)
    neuron = SimpleNamespace(**vars(plain), tensor_parallel_size=2, disable_sequence_parallel=False)
    layout = Layout.of(neuron, static=True)
    assert (layout.tensor, layout.data, layout.sequence_parallel) == (2, 4, True)
    # On a device without cores the flags are held against the model all the same.
    assert "attention heads" in rules(Layout.of(neuron, static=False), SMOLLM2)


# -- environment and start ---------------------------------------------------------------------------------------

# As transformers writes them into config.json; the attributes that a Llama has are not among them.
OTHER_FAMILIES = {
    "gpt2": {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_inner": None, "vocab_size": 50257},
    "opt": {
        **{"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"max_position_embeddings": 2048, "vocab_size": 50272},
    },
    "bloom": {"hidden_size": 1024, "n_head": 16, "n_layer": 24, "vocab_size": 250880, "seq_length": 2048},
    "gptj": {"n_embd": 4096, "n_head": 16, "n_layer": 28, "n_positions": 2048, "vocab_size": 50400},
    "gpt_neo": {"hidden_size": 768, "num_heads": 12, "num_layers": 12, "max_position_embeddings": 2048},
    "falcon": {"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True},
}


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_with_other_names_for_their_dimensions(family: str) -> None:
    """Their configs have no intermediate_size, some no num_attention_heads either: rules, not an AttributeError."""
    config = {"model_type": family, **OTHER_FAMILIES[family]}
    assert signature.rule_problems(Layout(), config, 512) == []
    found = "\n".join(signature.rule_problems(Layout(tensor=7, pipeline=5), config, 512))
    assert "does not divide the model's attention heads" in found
    assert "does not divide the model's intermediate size" in found
    assert "pipeline_parallel_size 5 does not divide" in found
    too_long = "\n".join(signature.rule_problems(Layout(), config, 4096))
    assert ("exceeds the model's" in too_long) == (family not in ("bloom", "falcon"))


def test_falcons_queries_share_one_head_of_keys() -> None:
    size = families.Dimensions.of({"model_type": "falcon", **OTHER_FAMILIES["falcon"]})
    assert (size.heads, size.kv_heads, size.intermediate) == (71, 1, 4 * 4544)


FP32 = SimpleNamespace(bf16=False, half_precision_backend="xla")
BF16 = SimpleNamespace(bf16=True, half_precision_backend="xla")


def test_environment_by_number_format() -> None:
    assert not {"XLA_USE_BF16", "NEURON_RT_STOCHASTIC_ROUNDING_EN"} & set(launch.environment(FP32))
    assert launch.environment(BF16)["NEURON_RT_STOCHASTIC_ROUNDING_EN"] == "1"
    assert launch.environment(BF16)["XLA_USE_BF16"] == "1"
    assert "XLA_USE_BF16" not in launch.environment(SimpleNamespace(bf16=True, half_precision_backend="amp"))


def test_what_the_user_gave_is_left_alone_and_compiler_flags_are_added_once() -> None:
    given = {"NEURON_CC_FLAGS": "-O1 --model-type=unet", "MALLOC_ARENA_MAX": "2"}
    found = launch.environment(FP32, given)
    assert "MALLOC_ARENA_MAX" not in found
    flags = found["NEURON_CC_FLAGS"]
    assert flags == "-O1 --model-type=unet --distribution-strategy=llm-training --retry_failed_compilation"
    assert "NEURON_CC_FLAGS" not in launch.environment(FP32, {**given, "NEURON_CC_FLAGS": flags})


@pytest.mark.parametrize("cache", ["s3://bucket/cache", "/mnt/cache.v1/x"])
def test_a_cache_directory_that_upstream_misreads_is_refused_with_the_way_out(cache: str) -> None:
    with pytest.raises(ValueError, match=f"set NEURON_COMPILE_CACHE_URL={cache} instead"):
        launch.environment(FP32, {"NEURON_CC_FLAGS": f"--cache_dir={cache}"})
    assert "NEURON_CC_FLAGS" in launch.environment(FP32, {"NEURON_CC_FLAGS": "--cache_dir=/mnt/cache"})


def test_several_hosts_and_compiling_only() -> None:
    two = Resources(hosts=("algo-1", "algo-2"), instance_type="ml.trn1n.32xlarge")
    assert launch.early_environment(two, {})["FI_PROVIDER"] == "efa"
    assert launch.early_environment(two, {"FI_PROVIDER": "tcp"}).get("FI_PROVIDER") is None
    for without in (
        dataclasses.replace(two, instance_type="ml.trn1.2xlarge"),
        dataclasses.replace(two, hosts=("algo-1",)),
    ):
        assert "FI_PROVIDER" not in launch.early_environment(without, {})
    assert "NEURON_PARALLEL_COMPILE_MAX_RETRIES" not in launch.environment(FP32)
    found = launch.environment(FP32, {"NEURON_EXTRACT_GRAPHS_ONLY": "1"})
    assert found["NEURON_PARALLEL_COMPILE_MAX_RETRIES"] == "1"


def test_several_hosts_are_told_apart_by_the_toolkits_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SageMaker's training toolkit brings it; every container of a job is called "aws"."""
    two = Resources(hosts=("algo-1", "algo-2"), instance_type="ml.trn1.32xlarge")
    assert "LD_PRELOAD" not in launch.early_environment(two, {}), "it is not installed here"
    library = tmp_path / "gethostname.cpython-311-x86_64-linux-gnu.so"
    library.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert launch.early_environment(two, {})["LD_PRELOAD"] == str(library)
    assert "LD_PRELOAD" not in launch.early_environment(dataclasses.replace(two, hosts=("algo-1",)), {})
    assert "LD_PRELOAD" not in launch.early_environment(two, {"LD_PRELOAD": "/x.so"})
    library.rename(tmp_path / "gethostname.py")
    importlib.invalidate_caches()
    assert "LD_PRELOAD" not in launch.early_environment(two, {}), "another module of that name"


def test_every_variable_has_its_source() -> None:
    for table in (launch.COMPILER_FLAGS, launch.ALWAYS, launch.EFA, launch.BF16, launch.BF16_XLA):
        assert all(value and len(source) > 10 for value, source in table.values())


def test_one_worker_per_core(tmp_path: Path) -> None:
    assert launch.cores({}, tmp_path / "absent") == 1
    (tmp_path / "neuron0").mkdir()
    assert launch.cores({}, tmp_path) == 2
    assert launch.cores({"NEURON_RT_NUM_CORES": "8"}, tmp_path) == 8


def test_a_worker_takes_its_core_of_what_the_container_was_lent() -> None:
    """torch_xla 2.1.0 gives worker N core N, whatever the range is."""
    assert [launch.own_core("4-5", rank) for rank in (0, 1)] == ["4", "5"]
    assert [launch.own_core("0,2-3", rank) for rank in (0, 1, 2)] == ["0", "2", "3"]
    assert launch.own_core("", 7) == "7"
    with pytest.raises(ValueError, match="4-5 has 2 cores, and this is worker 2"):
        launch.own_core("4-5", 2)
    assert launch.cores({"NEURON_RT_VISIBLE_CORES": "4-7"}) == 4
    assert launch.cores({"NEURON_RT_VISIBLE_CORES": "4-7", "NEURON_RT_NUM_CORES": "2"}) == 2


def test_the_command_is_torchrun_over_all_hosts_in_their_order() -> None:
    hosts = ("algo-1", "algo-2", "algo-10")
    words = launch.command(["--bf16", ""], {"NEURON_RT_NUM_CORES": "32"}, hosts, "algo-10")
    assert words[1:4] == ["-u", "-m", "train.workers"]
    assert {"--nproc_per_node=32", "--nnodes=3", "--node_rank=2", "--master_addr=algo-1"} <= set(words)
    assert words[-4:] == ["-m", "train.run_clm", "--bf16", ""]
    alone = launch.command([], {}, ("algo-1",), "algo-1")
    assert {"--local_addr=127.0.0.1", "--rdzv_endpoint=127.0.0.1:0"} <= set(alone)
    assert not {"--standalone", "--nnodes=1"} & set(alone), "a host that is alone asks nobody for its own name"
    assert launch.command([], {"RUN_NEURON_PARALLEL_COMPILE": "1"}, ("a",), "a") == [
        "neuron_parallel_compile",
        *alone,
    ]


def test_only_device_neuron_starts_workers_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(launch.os, "execvpe", lambda _name, words, _env: started.append(words))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    launch.start_workers(["--device", "cpu"])
    assert started == []
    launch.start_workers(["--device", "neuron"])
    launch.start_workers([])
    assert len(started) == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    launch.start_workers(["--device", "neuron"])
    assert len(started) == 2
