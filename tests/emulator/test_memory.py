"""What the local SageMaker keeps of what went through it: an idle server stays small."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from harness.aws.session import Aws
from harness.aws.transfer import PART, Transfer
from harness.local import control
from harness.record import Record
from harness.spec.profile import LOCAL
from tests.emulator.conftest import start

pytestmark = pytest.mark.emulator
IDLE = 150_000_000  # bytes resident


def test_the_bodies_of_a_large_upload_are_let_go_of(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(4 * PART)
    server = start(tmp_path / "state")
    try:
        aws = Aws(server.answering(LOCAL))
        Transfer(aws, Record("x", tmp_path / "x")).upload(weights, f"s3://{LOCAL.bucket}/model")
        aws.call("s3", "head_bucket", Bucket=LOCAL.bucket)
        resident = psutil.Process(server.pid).memory_info().rss
        assert resident < IDLE, f"{resident / 1e6:.0f} MB are resident after an upload of {4 * PART / 1e6:.0f} MB"
    finally:
        control.down(server.state)
