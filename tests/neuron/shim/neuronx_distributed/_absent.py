"""What has no meaning on one core."""

from typing import Any

import torch


class Absent(torch.nn.Module):
    """For `isinstance` and patches only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__}: the stand-in has one core")


def absent(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("the stand-in has one core")
