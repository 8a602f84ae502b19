"""Platform `local`: the local SageMaker that a command uses, started if none is up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.errors import NotFound
from harness.profile import Profile

Say = Callable[[str], None]
ACCOUNT = "123456789012"  # moto's
PROFILE = Profile(
    account=ACCOUNT,
    region="us-west-2",
    role_arn=f"arn:aws:iam::{ACCOUNT}:role/neuron-harness",
    bucket="neuron-harness",
)
IMAGES = {
    "train_image": f"{PROFILE.image('neuron-train')}:process",
    "serve_image": f"{PROFILE.image('neuron-serve')}:process",
}


@contextmanager
def up(say: Say, start: bool = True) -> Iterator[str]:
    """The address of the local SageMaker."""
    if start:
        raise NotFound("not yet")
    yield ""
