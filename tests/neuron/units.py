"""Parts of device neuron that need its packages: run by `python -m tests.neuron.units`, one JSON line for each.

They are not pytest's, because .venv-neuron has optimum-neuron's pins and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from optimum.neuron.distributed import parallel_layers
from optimum.neuron.training_args import NeuronTrainingArgumentsMixin
from transformers import LlamaConfig, LlamaForCausalLM

from train.data import IGNORED
from train.devices import neuron
from train.devices.ignored import NeuronFlags
from train.order import Counted, EpochSampler

TESTS: list[Callable[[], None]] = []


def unit(function: Callable[[], None]) -> Callable[[], None]:
    TESTS.append(function)
    return function


def per_token(logits: Any, labels: Any, label_smoothing: float = 0.0) -> Any:
    """As neuronx-distributed's on one core: a label outside the vocabulary has the log-sum-exp as its loss."""
    assert label_smoothing == 0.0
    inside = (labels >= 0) & (labels < logits.shape[-1])
    return torch.logsumexp(logits, -1) - logits.gather(-1, (labels * inside)[:, None])[:, 0] * inside


def random_rows() -> tuple[Any, Any]:
    torch.manual_seed(0)
    labels = torch.randint(0, 11, (40,))
    labels[torch.rand(40) < 0.8] = IGNORED
    return torch.randn(40, 11, requires_grad=True), labels


AS_CALLED = {"weight": None, "ignore_index": IGNORED, "label_smoothing": 0.0}  # by torch's cross_entropy


@unit
def masked_loss_equals_torchs_in_value_and_gradient() -> None:
    for reduction in ("mean", "sum", "none"):
        logits, labels = random_rows()
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)
        (wanted,) = torch.autograd.grad(expected.sum(), logits)
        found = neuron.masked_cross_entropy(logits, labels, reduction=reduction, **AS_CALLED)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient, wanted)
    assert float(neuron.masked_cross_entropy(logits, labels * 0 + IGNORED, **AS_CALLED)) == 0.0


@unit
def upstreams_own_loss_takes_ignored_positions_in() -> None:
    """The reason for masked_cross_entropy: the real safe_parallel_cross_entropy over the same losses per token."""
    logits, labels = random_rows()
    found = float(UPSTREAM(logits, labels, reduction="mean", **AS_CALLED))
    assert abs(found - float(per_token(logits, labels, 0.0).mean())) < 1e-6
    assert abs(found - float(torch.nn.functional.cross_entropy(logits, labels))) > 0.01


@unit
def the_loss_is_put_where_upstream_looks_for_it() -> None:
    assert parallel_layers.safe_parallel_cross_entropy is UPSTREAM
    with contextlib.suppress(Exception):  # there is no model; the loss is put in place before
        neuron.trainer(model=SimpleNamespace(config=None, generation_config=None), args=None)

    class Model:
        def forward(self, logits: Any, labels: Any) -> Any:
            return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="mean")

    logits, labels = random_rows()
    expected = torch.nn.functional.cross_entropy(logits, labels)
    model = Model()
    # Upstream's own patch, as it is applied to a model whose vocabulary is cut.
    parallel_layers.ParallelCrossEntropy.patch_cross_entropy(model)
    torch.testing.assert_close(model.forward(logits, labels), expected)
    parallel_layers.safe_parallel_cross_entropy = UPSTREAM
    plain = Model()
    parallel_layers.ParallelCrossEntropy.patch_cross_entropy(plain)
    assert abs(float(plain.forward(logits, labels) - expected)) > 0.01


@unit
def flags_that_the_cpu_device_accepts_are_upstreams() -> None:
    upstream = {f.name: f.default for f in dataclasses.fields(NeuronTrainingArgumentsMixin)}
    del upstream["half_precision_backend"]  # transformers has it too, with other choices
    assert {f.name: f.default for f in dataclasses.fields(NeuronFlags)} == upstream


@unit
def workers_share_out_the_cpu_devices_order_in_whole_steps() -> None:
    rows = [{"labels": np.array([IGNORED, *([1] * (i % 3 + 1)), *([IGNORED] * (3 - i % 3))])} for i in range(23)]
    for replicas, step_rows in ((3, 6), (1, 4)):
        seen = []
        for epoch in (0, 1):
            parts = []
            for rank in range(replicas):
                counted = Counted(EpochSampler(23, None, 2, 7), rows, step_rows)
                shard = neuron.EpochShard(rows, replicas, rank, counted)
                shard.set_epoch(epoch)
                parts.append(list(shard))
                assert len(shard) == len(parts[-1]) == 23 // step_rows * step_rows // replicas
            order = EpochSampler(23, None, 2, 7)
            order.set_epoch(epoch)
            found = [pair for group in zip(*parts) for pair in group]
            assert [row for row, _ in found] == list(order)[: len(found)]
            for start in range(0, len(found), step_rows):
                step = found[start : start + step_rows]
                assert {tokens for _, tokens in step} == {sum(row % 3 + 1 for row, _ in step)}
            seen.append(found)
        assert seen[0] != seen[1]


@unit
def evaluation_rows_fill_whole_batches_without_labels() -> None:
    rows = [{"input_ids": np.array([i, i]), "labels": np.array([IGNORED, i])} for i in range(5)]
    full = neuron.FullBatches(rows, 4)
    assert [int(full[i]["input_ids"][0]) for i in range(len(full))] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert [int(full[i]["labels"][1]) for i in range(len(full))] == [0, 1, 2, 3, 4, IGNORED, IGNORED, IGNORED]
    assert full[5]["labels"].dtype == full[0]["labels"].dtype
    assert len(neuron.FullBatches(rows[:4], 4)) == 4


def small(tied: bool) -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=tied, **sizes))


@unit
def a_whole_model_comes_from_weights_and_nothing_may_be_missing() -> None:
    for tied in (True, False):
        model = small(tied)
        original = (copy.deepcopy(model.config), model.generation_config)
        weights = {k: v.clone() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        made = neuron.Trained(*original, weights.items)
        ids = torch.arange(8)[None]
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            neuron.save(neuron.shell(made, torch.float32), neuron.weights(made), Path(folder))
            loaded = LlamaForCausalLM.from_pretrained(folder)
            torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
        less = {k: v for k, v in weights.items() if k != "model.norm.weight"}
        untied = {} if tied else {"lm_head": {k: v for k, v in weights.items() if k != "lm_head.weight"}}
        for name, wrong in {
            "model.norm.weight": less,
            "extra": {**weights, "extra": torch.zeros(1)},
            **untied,
        }.items():
            try:
                list(neuron.weights(neuron.Trained(*original, wrong.items)))
            except RuntimeError as error:
                assert name in str(error), error
            else:
                raise AssertionError(f"{name}: let pass")


@unit
def pickled_weights_are_converted_before_the_second_worker_opens_them() -> None:
    """Upstream's function gives the second worker a path where nothing is; whether it is there in time is luck."""
    group = (torch.distributed.is_initialized, getattr(torch.distributed, "get_rank", None))
    meet, ordinal = neuron.xm.rendezvous, neuron.xm.get_local_ordinal
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "pytorch_model.bin"
        torch.save({"weight": torch.ones(3)}, weights)

        def the_first_worker_comes(tag: str) -> None:
            neuron.xm.get_local_ordinal = lambda: 0
            neuron.xm.rendezvous = lambda tag: None
            neuron.converted_once_a_host(weights)

        torch.distributed.is_initialized, torch.distributed.get_rank = (lambda: True), (lambda: 1)
        try:
            assert not neuron._convert(weights).exists(), "upstream waits for nobody"
            neuron.xm.get_local_ordinal, neuron.xm.rendezvous = (lambda: 1), the_first_worker_comes
            assert neuron.converted_once_a_host(weights).is_file()
        finally:
            torch.distributed.is_initialized, torch.distributed.get_rank = group
            neuron.xm.rendezvous, neuron.xm.get_local_ordinal = meet, ordinal


@unit
def a_worker_gets_its_core_of_the_lent_range() -> None:
    """torch_xla 2.1.0 would give worker 1 the core 1, whatever the container was lent."""
    known = {name: os.environ.get(name) for name in ("NEURON_RT_VISIBLE_CORES", "NEURON_PJRT_PROCESS_INDEX")}
    neuron.LENT = "4-5"
    neuron.set_own_core(1)
    assert (os.environ["NEURON_RT_VISIBLE_CORES"], os.environ["NEURON_PJRT_PROCESS_INDEX"]) == ("5", "1")
    neuron.torch_xla_neuron.initialize_env(1)  # upstream's, as long as no arguments were made in this process
    assert os.environ["NEURON_RT_VISIBLE_CORES"] == "1"
    for name, value in known.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


UPSTREAM = neuron._every_position


def main() -> int:
    # The part of upstream's loss that neuronx-distributed has, on one core. Not in the shim, which holds no loss.
    stand_in = SimpleNamespace(parallel_cross_entropy=per_token)
    sys.modules["neuronx_distributed.parallel_layers.loss_functions"] = stand_in  # type: ignore[assignment]
    for test in TESTS:
        try:
            test()
            outcome = "ok"
        except Exception:  # noqa: BLE001 (reported by name)
            outcome = traceback.format_exc()
        print(json.dumps([test.__name__, outcome]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
