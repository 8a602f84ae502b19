"""Causal attention for training on a processor, where torch's own is slow: a third of a step's time at 512 tokens.

torch's flash attention for processors reaches 125 GF/s in its backward pass where a matrix product reaches 900
(docs/internals/training-speed.md). This one is made of batched matrix products: queries in blocks of BLOCK, each
against the keys up to its end, so what lies after the diagonal is mostly never computed; query heads that share a
key-value head are one product. Four times as fast at 512 x 4 in bf16. It takes the place of `sdpa` for the families
that a test proves equal.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BLOCK = 128  # queries; 256 and 512 are slower, since more of what is masked is computed
KEPT_BYTES = 64 << 20  # of a layer's probabilities that are kept for the backward pass; else they are made again
# model_type of configurations whose attention goes through transformers' registry and is causal, with or without a
# mask that forbids more: tests/chain/own_loss.py compares each with sdpa's, in losses and gradients.
PROVEN = frozenset({"gemma", "llama", "mistral", "olmo", "olmo2", "phi", "phi3", "qwen2", "starcoder2"})


def _scores(query: torch.Tensor, keys: torch.Tensor, mask: Any, start: int) -> torch.Tensor:
    """Probabilities (batch, shared heads, group, block, end) of a block of queries that begins at `start`.

    `query` is (batch, shared, group, block, d), scaled; `keys` (batch, shared, end, d); `mask` None or additive of
    shape (batch or 1, 1, tokens, tokens), causal itself.
    """
    batch, shared, group, block, width = query.shape
    end = keys.shape[2]
    flat = query.reshape(batch * shared, group * block, width)
    scores = torch.bmm(flat, keys.reshape(batch * shared, end, width).transpose(1, 2))
    scores = scores.view(batch, shared, group, block, end)
    if mask is None:
        ahead = torch.ones(block, block, dtype=torch.bool).triu_(1)
        scores[..., start:end].masked_fill_(ahead, float("-inf"))
    else:
        scores += mask[:, :, None, start:end, :end]
    return torch.softmax(scores, dim=-1)


class BlockAttention(torch.autograd.Function):
    """softmax(scale * query @ key.T + mask) @ value, causal: query (batch, heads, tokens, d), key and value (batch,
    shared, tokens, d)."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, scale: float) -> torch.Tensor:
        batch, heads, tokens, width = query.shape
        shared = key.shape[1]
        grouped = (query * scale).contiguous().view(batch, shared, heads // shared, tokens, width)
        out = torch.empty_like(grouped)
        kept: list[torch.Tensor] = []
        keep = batch * heads * tokens * (tokens + BLOCK) * query.element_size() // 2 <= KEPT_BYTES
        for start in range(0, tokens, BLOCK):
            end = min(start + BLOCK, tokens)
            chances = _scores(grouped[..., start:end, :], key[:, :, :end], mask, start)
            flat = chances.view(batch * shared, -1, end)
            mixed = torch.bmm(flat, value[:, :, :end].reshape(batch * shared, end, width))
            out[..., start:end, :] = mixed.view(batch, shared, -1, end - start, width)
            if keep:
                kept.append(chances)
        ctx.save_for_backward(grouped, key, value, mask, out, *kept)
        ctx.scale = scale
        return out.view(batch, heads, tokens, width)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grouped, key, value, mask, out, *kept = ctx.saved_tensors
        batch, shared, group, tokens, width = grouped.shape
        grad = grads[0].reshape(batch, shared, group, tokens, width)
        # The sum over keys of probability and its gradient, from the result (https://arxiv.org/abs/2205.14135, B.4).
        inner = (grad.float() * out.float()).sum(dim=-1, keepdim=True).to(grad.dtype)
        query_grad = torch.empty_like(grouped)
        key_grad, value_grad = (torch.zeros(batch * shared, tokens, width) for _ in range(2))
        for number, start in enumerate(range(0, tokens, BLOCK)):
            end = min(start + BLOCK, tokens)
            keys = key[:, :, :end].reshape(batch * shared, end, width)
            values = value[:, :, :end].reshape(batch * shared, end, width)
            queries = grouped[..., start:end, :]
            chances = kept[number] if kept else _scores(queries, key[:, :, :end], mask, start)
            chances = chances.view(batch * shared, -1, end)
            above = grad[..., start:end, :].reshape(batch * shared, -1, width)
            value_grad[:, :end] += torch.bmm(chances.transpose(1, 2), above)
            scores_grad = torch.bmm(above, values.transpose(1, 2))
            scores_grad.sub_(inner[..., start:end, :].reshape(batch * shared, -1, 1)).mul_(chances)
            block_grad = torch.bmm(scores_grad, keys)
            query_grad[..., start:end, :] = block_grad.view(batch, shared, group, end - start, width)
            flat = queries.reshape(batch * shared, -1, width)
            key_grad[:, :end] += torch.bmm(scores_grad.transpose(1, 2), flat)
        query_grad = query_grad.mul_(ctx.scale).view(batch, shared * group, tokens, width)
        return query_grad, key_grad.view_as(key).to(key.dtype), value_grad.view_as(value).to(value.dtype), None, None


_upstream = ALL_ATTENTION_FUNCTIONS["sdpa"]


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls by the name of sdpa; upstream's for all that is not plain causal training."""
    square = query.shape[2] == key.shape[2] > 1 and query.shape[3] == value.shape[3]
    plain = attention_mask is None or (attention_mask.dim() == 4 and attention_mask.is_floating_point())
    whole = attention_mask is None or attention_mask.shape[-1] == attention_mask.shape[-2] == key.shape[2]
    proven = getattr(module.config, "model_type", "") in PROVEN
    if not (proven and square and plain and whole) or dropout or more.get("is_causal") is False:
        return _upstream(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more)
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    out = BlockAttention.apply(query, key, value, attention_mask, scale)
    return out.transpose(1, 2).contiguous(), None


def install() -> None:
    """Let models of this process train with it."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
