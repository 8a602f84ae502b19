"""Fit, time, price and the cheapest change, on plain values."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings, strategies as st

from harness.estimate import hardware, host, memory, models, outlook, price
from harness.estimate.hardware import GIB
from harness.estimate.memory import DOES_NOT_FIT, FITS, Serving, Training
from harness.estimate.outlook import Subject
from tests.estimate.test_price import TABLE

TINYLLAMA = models.known()["TinyLlama/TinyLlama-1.1B-Chat-v1.0"].architecture
LLAMA_8B = models.known()["meta-llama/Llama-3.1-8B"].architecture
LAB = Subject(
    TINYLLAMA,
    "test",
    "ml.trn1.2xlarge",
    "ml.inf2.xlarge",
    region="us-west-2",
    tensor_parallel=2,
    precision="bf16",
    batch=1,
    accumulation=8,
    block=150,
    max_steps=100,
    serve_tp=2,
    positions=512,
    slots=1,
    serve_dtype="fp16",
)


def test_the_labs_settings_fit_and_fp32_on_one_core_does_not() -> None:
    assert outlook.outlook(LAB).verdict == FITS
    worse = outlook.outlook(replace(LAB, tensor_parallel=1, precision="fp32"))
    assert worse.train.verdict == DOES_NOT_FIT
    assert worse.train.core is not None
    assert worse.train.core.largest.name == "optimizer state"
    assert worse.train.change == "train.bf16 = true"


def test_the_arithmetic_of_the_optimizer_by_hand() -> None:
    core = memory.training_footprint(TINYLLAMA, Training(precision="fp32", block=150, batch=1))
    parts = {t.name: t.span.expected for t in core.terms}
    count = TINYLLAMA.parameters - 2048  # the last norm is not counted in a stage
    assert parts["weights"] == parts["gradients"] == 4 * count
    assert parts["optimizer state"] == 8 * count


def test_tp_pp_zero1_lora_and_checkpointing_each_take_something_away() -> None:
    def parts(**kind: object) -> dict[str, float]:
        footprint = memory.training_footprint(LLAMA_8B, Training(**{"batch": 4, "block": 2048, **kind}))  # type: ignore[arg-type]
        return {t.name: t.span.expected for t in footprint.terms}

    bare = parts()
    assert parts(tp=2)["weights"] == bare["weights"] / 2
    assert parts(tp=2)["logits"] == bare["logits"] / 2
    assert parts(pp=4)["weights"] < bare["weights"] / 3
    assert parts(zero1=True, data_parallel=8)["optimizer state"] == bare["optimizer state"] / 8
    assert parts(zero1=True, data_parallel=1)["optimizer state"] == bare["optimizer state"]
    assert parts(checkpointing=True)["activations"] < bare["activations"] / 5
    lora = parts(lora_rank=16, lora_targets=("q_proj", "v_proj"))
    assert lora["optimizer state"] < bare["optimizer state"] / 500
    assert lora["weights"] >= bare["weights"]
    assert parts(block=1024)["logits"] == bare["logits"] / 2


def test_heads_are_padded_and_repeated_as_transformers_neuronx_does() -> None:
    seventy = models.known()["meta-llama/Llama-3.1-70B"].architecture  # 64 heads, 8 of keys and values
    assert memory.sharded_heads(seventy, 8) == (8, 1)
    assert memory.sharded_heads(seventy, 24) == (3, 1)  # 72 and 24: repeated up to TP
    assert memory.sharded_heads(seventy, 12) == (6, 6)  # 72 and 72: TP 12 is no multiple of 8
    assert memory.sharded_heads(TINYLLAMA, 2) == (16, 2)


@given(st.sampled_from(sorted(models.known())), st.sampled_from([1, 2, 4, 8, 12, 24, 32]))
def test_sharded_heads_hold_at_least_every_head(name: str, tp: int) -> None:
    arch = models.known()[name].architecture
    q, kv = memory.sharded_heads(arch, tp)
    assert q * tp >= arch.heads
    assert kv * tp >= arch.kv_heads
    assert kv <= q or arch.heads == arch.kv_heads


@settings(deadline=None)
@given(
    st.sampled_from(sorted(models.known())),
    st.sampled_from([1, 2, 8, 24]),
    st.integers(1, 64),
    st.integers(128, 8192),
)
def test_memory_grows_with_slots_and_positions_and_spans_are_in_order(
    name: str, tp: int, slots: int, positions: int
) -> None:
    arch = models.known()[name].architecture

    def total(slots: int, positions: int) -> memory.Span:
        buckets = memory.doubling(128, positions)
        return memory.serving_footprint(arch, Serving(tp, slots, buckets, buckets)).total

    span = total(slots, positions)
    assert 0 < span.low <= span.expected <= span.high
    assert total(slots + 1, positions).expected > span.expected
    assert total(slots, positions + 128).expected > span.expected


def test_the_host_counts_every_replica_and_every_compiler() -> None:
    serving = Serving(2, 1, (128, 256), (128, 256))
    one = host.serving_host(TINYLLAMA, serving, 16).total
    two = host.serving_host(TINYLLAMA, serving, 16, replicas=2).total
    assert two.expected > 1.5 * one.expected
    compiled = host.serving_host(TINYLLAMA, serving, 16, compiled=True).total
    assert compiled.expected < one.expected


def test_what_does_not_fit_comes_with_a_change_that_fits() -> None:
    found = outlook.outlook(replace(LAB, arch=LLAMA_8B, block=1024))
    assert found.train.verdict == DOES_NOT_FIT
    assert "trn1.32xlarge" in found.train.change
    assert "inf2.8xlarge" in found.serve.change


def test_a_model_too_large_for_everything_has_no_change() -> None:
    giant = replace(LLAMA_8B, layers=400, hidden=16384, intermediate=65536)
    assert outlook.outlook(replace(LAB, arch=giant)).train.change == ""


def test_time_of_the_lab_holds_the_workshops_twelve_minutes() -> None:
    found = outlook.outlook(LAB)
    assert found.job_time.low < 12 * 60 < found.job_time.high


def test_without_rows_the_most_is_max_runtime() -> None:
    found = outlook.outlook(replace(LAB, max_steps=-1, rows=None, max_runtime=5000))
    assert found.work.steps is None
    assert found.job_time.high == 5000


def test_steps_and_tokens() -> None:
    work = outlook.outlook(replace(LAB, max_steps=-1, epochs=2.0, rows=1000)).work
    assert (work.steps, work.tokens) == (250, 250 * 8 * 150)  # one worker of TP 2, 8 rows a step


def test_the_price_is_of_both_endpoints_and_of_the_prepare_job() -> None:
    found = outlook.outlook(replace(LAB, endpoints=2, precompiled=True), TABLE)
    assert [line.charge.what for line in found.bill.lines] == [
        "training",
        "prepare job",
        "endpoint 1 of 2",
        "endpoint 2 of 2",
    ]
    assert found.bill.total is not None
    assert found.endpoint_per_hour == Decimal("0.99")


def test_a_volume_is_billed_only_where_the_instance_has_no_disk_of_its_own() -> None:
    found = outlook.outlook(replace(LAB, volume_gb=200), TABLE)
    assert "training volume" not in [line.charge.what for line in found.bill.lines]


def test_another_region_for_serving_has_its_own_price() -> None:
    found = outlook.outlook(replace(LAB, serve_region="eu-west-1"), price.carried())
    assert found.endpoint_per_hour is None
    assert "unknown in eu-west-1" in found.bill.lines[-1].note or "EC2" in found.bill.lines[-1].note


def test_an_instance_without_neuron_cores_is_unknown_and_not_refused() -> None:
    found = outlook.outlook(replace(LAB, train_instance="ml.g5.xlarge"))
    assert found.train.verdict == outlook.UNKNOWN
    assert found.verdict == outlook.UNKNOWN


def test_where_an_instance_was_not_seen_is_said() -> None:
    notes = outlook.outlook(replace(LAB, region="eu-west-1")).train.notes
    assert any("was not seen in eu-west-1" in note for note in notes)


def test_a_short_start_time_is_warned_about() -> None:
    notes = outlook.outlook(replace(LAB, startup_seconds=120)).serve.notes
    assert any("takes at least" in note for note in notes)


def test_json_has_everything() -> None:
    raw = json.loads(json.dumps(outlook.to_dict(outlook.outlook(LAB))))
    assert raw["verdict"] == FITS
    assert raw["train"]["core"]["largest"] == "optimizer state"
    assert raw["bill"]["total"] == "unknown"
    assert {a["status"] for a in raw["assumptions"]} == {"confirmed", "second-hand", "assumption"}
    assert raw["train"]["core"]["total"]["high"] < 16 * GIB


@pytest.mark.parametrize("name", hardware.instances())
def test_every_instance_has_cores_memory_and_regions(name: str) -> None:
    instance = hardware.instances()[name]
    assert instance.cores > 0
    assert instance.host_gib >= 16
    assert instance.regions
    assert max(hardware.TP_DEGREES[instance.chip]) >= min(instance.cores, 24)
