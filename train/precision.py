"""bf16 weights with copies in fp32 that the optimizer works on: device cpu's way to train in bf16.

Autocast keeps the weights in fp32 and converts them, and every result, back and forth. Here the model is bf16, so its
matrix products are what the processor is good at, and each step's change goes into fp32 copies: a change of less than
1/256 of a weight would otherwise be lost (https://arxiv.org/abs/1710.03740, section 3.1). Gradients are added up in
fp32, over the batches of a step as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

MASTERS = "fp32_weights"  # in the optimizer's state, so that a checkpoint has them


class MasterWeights:
    """fp32 copies of a model's trained bf16 parameters."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.of: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        for parameter in parameters:
            self.of[parameter] = torch.nn.Parameter(parameter.detach().float())
            parameter.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: torch.nn.Parameter) -> None:
        """Add a gradient to its copy's as soon as it is whole, and let it go."""
        copy, gradient = self.of[parameter], parameter.grad
        assert gradient is not None
        if copy.grad is None:
            copy.grad = gradient.float()
        else:
            copy.grad += gradient
        parameter.grad = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer that was made for the parameters, and has not taken a step, work on the copies."""
        assert not optimizer.state, "the optimizer has moments for the parameters already"
        for group in optimizer.param_groups:
            group["params"] = [self.of[p] for p in group["params"]]
        optimizer.register_step_post_hook(self._give_back)
        optimizer.register_state_dict_post_hook(self._store)
        optimizer.register_load_state_dict_pre_hook(self._load)

    @torch.no_grad()
    def _give_back(self, *_: Any) -> None:
        for parameter, copy in self.of.items():
            parameter.copy_(copy)
            copy.grad = None

    def into_model(self) -> None:
        """The copies in the place of the parameters, for an export that rounds once. Ends training."""
        for parameter, copy in self.of.items():
            parameter.data = copy.data

    def _store(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state[MASTERS] = [copy.detach() for copy in self.of.values()]

    @torch.no_grad()
    def _load(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        rest = dict(state)
        for copy, stored in zip(self.of.values(), rest.pop(MASTERS)):  # noqa: B905 (strict= is 3.10)
            copy.copy_(stored)
        self._give_back()
        return rest
