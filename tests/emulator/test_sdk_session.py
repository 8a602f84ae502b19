"""The recorded sessions of the SageMaker SDKs happen again."""

from __future__ import annotations

import pytest

from tests.emulator import sdk_session

pytestmark = pytest.mark.aws


def test_the_sessions_happen_again() -> None:
    assert sdk_session.record() == sdk_session.PAGE.read_text()


def test_the_page_holds_what_it_must() -> None:
    text = sdk_session.PAGE.read_text()
    said = [line for line in text.splitlines() if line.startswith("### ")]
    for word in (
        "fit with logs",
        "attach",
        "deployed",
        "predict ",
        "predict_stream",
        "deleted",
        "DJLModel",
        "built v3",
    ):
        assert any(word in line for line in said), word
    assert "hyperparameter sagemaker_program" in text
    assert "Traceback" not in text
