"""What a long step tells whoever watches. The command line implements it; tests use their own."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Plain facts as they happen; how they look is the implementation's business."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def progress(self, label: str, done: int, total: int) -> None:
        """`done` of `total` units of the step called `label`; done == total ends it."""
        ...
