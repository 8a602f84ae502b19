from __future__ import annotations

from typing import Any


def move_model_to_device(model: Any, device: Any) -> None:
    """To the device, with shared weights still shared (transformers ties them again)."""
    model.to(device)
    model.tie_weights()
