"""The language-modelling loss with less arithmetic than model.forward's, where a test proves it equal.

model.forward computes logits at every position and keeps them for the backward pass: with a vocabulary of 49,152,
512 x 4 tokens make 400 MB in fp32, several times over. Here logits exist only where there is a label, a few hundred
positions at a time, and their gradient is taken at once. Liger's fused cross entropy does the same on GPUs
(https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from train import packing
from train.packing import IGNORED

# model_type of configurations whose loss is cross entropy over head(decoder(tokens)) and nothing else:
# tests/chain/own_loss.py compares loss and gradients of each with model.forward's. Families that scale or cap their
# logits (gemma2, granite, cohere) or add a term (mixtures of experts) are not here and take upstream's way.
PROVEN = frozenset(
    {
        "bloom",
        "falcon",
        "gemma",
        "glm",
        "gpt2",
        "gpt_neox",
        "gptj",
        "llama",
        "mistral",
        "olmo",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "stablelm",
        "starcoder2",
    }
)
STEP_TOKENS = "step_tokens"  # in a training batch: labels of the whole step, on all workers (train/order.py)
CHUNK_ELEMENTS = 1 << 25  # logits that exist at once: 128 MiB in fp32


def causal_model(model: Any) -> Any:
    """The transformers model: inside of PEFT's, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_proven(model: Any) -> bool:
    """Whether `summed_loss` may stand in for model.forward's loss."""
    return causal_model(model).config.model_type in PROVEN


def label_count(labels: torch.Tensor) -> torch.Tensor:
    """Positions of (rows, columns) that a loss is taken at: a label in the first column has nothing before it."""
    return (labels[:, 1:] != IGNORED).sum()


def narrowed(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Without the columns that are padding in every row: rows are right padded, and no token looks ahead."""
    width = int(batch["attention_mask"].sum(dim=1).max())
    columns = batch["input_ids"].shape[1]
    return {k: v[:, :width] if v.dim() == 2 and v.shape[1] == columns else v for k, v in batch.items()}


def decoder_states(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Hidden states of shape (rows, columns, hidden) that the output layer makes logits from."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", STEP_TOKENS)}
    return causal_model(model).base_model(**packing.attention(inputs, model.dtype))[0]


def summed_loss(model: Any, batch: Mapping[str, Any], divisor: Any = 1, smoothing: float = 0.0) -> torch.Tensor:
    """The cross entropies of all labels of a batch, added up in fp32 and divided by `divisor`.

    `smoothing` is label_smoothing_factor as transformers' LabelSmoother defines it.
    """
    batch = narrowed(batch)
    labels = batch["labels"][:, 1:]
    states = decoder_states(model, batch)[:, :-1]
    wanted = labels != IGNORED
    head = causal_model(model).get_output_embeddings()
    if type(head) is torch.nn.Linear:
        return ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call, no-any-return, unused-ignore]
            states[wanted], head.weight, head.bias, labels[wanted], float(divisor), smoothing
        )
    # An output layer with something around it (LoRA).
    logits = head(states[wanted]).float()
    loss = torch.nn.functional.cross_entropy(logits, labels[wanted], reduction="sum", label_smoothing=smoothing)
    return loss / divisor


class ChunkedCrossEntropy(torch.autograd.Function):
    """sum(cross_entropy(states @ weight.T + bias, labels)) / divisor, a few hundred rows at a time.

    The gradients are taken in the forward pass, while a chunk's probabilities are in the cache: three matrix products
    for each chunk, as many as autograd does, and no logits are kept. Those of the weights are added up in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: Any, labels: Any, divisor: float, smoothing: float
    ) -> torch.Tensor:
        vocabulary = weight.shape[0]
        size = max(64, CHUNK_ELEMENTS // vocabulary)
        needs_states, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        total = torch.zeros((), dtype=torch.float32)
        state_grad = torch.empty_like(states) if needs_states else None
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32) if needs_weight else None
        bias_grad = torch.zeros(vocabulary, dtype=torch.float32) if needs_bias else None
        for start in range(0, states.shape[0], size):
            chunk, wanted = states[start : start + size], labels[start : start + size]
            logits = torch.nn.functional.linear(chunk, weight, bias)
            logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            rows = torch.arange(chunk.shape[0])
            total -= (1 - smoothing) * logs[rows, wanted].sum()
            if smoothing:
                total -= smoothing / vocabulary * logs.sum()
            if state_grad is None and weight_grad is None:
                continue
            grad = logs.exp_()
            grad[rows, wanted] -= 1 - smoothing
            if smoothing:
                grad -= smoothing / vocabulary
            grad /= divisor
            if bias_grad is not None:
                bias_grad += grad.sum(dim=0)
            grad = grad.to(weight.dtype)
            if state_grad is not None:
                torch.mm(grad, weight, out=state_grad[start : start + size])
            if weight_grad is not None:
                weight_grad += grad.t() @ chunk
        weight_grad = None if weight_grad is None else weight_grad.to(weight.dtype)
        bias_grad = None if bias_grad is None else bias_grad.to(weight.dtype)
        ctx.gradients = (state_grad, weight_grad, bias_grad)
        return total / divisor

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        scale = grads[0]
        found = ctx.gradients
        if float(scale) != 1.0:
            found = tuple(None if g is None else g * scale.to(g.dtype) for g in found)
        return (*found, None, None, None)
