"""Who is who on one core: the sizes and ranks are 1 and 0, and it counts as initialised once it was asked to be."""

from __future__ import annotations

from typing import Any

_initialised = False


def initialize_model_parallel(
    tensor_model_parallel_size: int = 1, pipeline_model_parallel_size: int = 1, **_: Any
) -> None:
    global _initialised  # noqa: PLW0603 (as the original keeps it)
    if (tensor_model_parallel_size, pipeline_model_parallel_size) != (1, 1):
        raise NotImplementedError("the stand-in has one core")
    _initialised = True


def model_parallel_is_initialized() -> bool:
    return _initialised


def _one() -> int:
    if not _initialised:
        raise RuntimeError("model parallel is not initialised")
    return 1


def _zero() -> int:
    return _one() - 1


def _group(as_list: bool = False) -> list[list[int]]:
    if not as_list:
        raise NotImplementedError("the stand-in has no process groups")
    return [[_zero()]]


get_data_parallel_size = get_tensor_model_parallel_size = get_pipeline_model_parallel_size = _one
get_data_parallel_rank = get_tensor_model_parallel_rank = get_pipeline_model_parallel_rank = _zero
get_data_parallel_group = get_tensor_model_parallel_group = get_pipeline_model_parallel_group = _group
