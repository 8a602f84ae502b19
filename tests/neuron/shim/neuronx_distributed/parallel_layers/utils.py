from __future__ import annotations

from typing import Any

import torch_xla.core.xla_model as xm


def move_all_tensor_to_cpu(data: Any, convert: bool = True) -> Any:
    """The same structure with its tensors on the host, after the pending graph has run."""
    xm.mark_step()
    if not convert:
        return data
    return type(data)((name, tensor.to("cpu")) for name, tensor in data.items())
