"""The recorded sessions of the AWS CLI, boto3 and sagemaker-core happen again."""

from __future__ import annotations

import pytest

from tests.emulator import aws_session


@pytest.mark.aws
@pytest.mark.timeout(900)
def test_the_sessions_happen_again() -> None:
    assert aws_session.record() == aws_session.PAGE.read_text()


@pytest.mark.aws
def test_the_page_holds_what_it_must() -> None:
    text = aws_session.PAGE.read_text()
    calls = [line for line in text.splitlines() if line.startswith("$ aws ")]
    assert len(calls) >= 12
    for verb in ("create-training-job", "wait ", "stop-training-job", "invoke-endpoint", "delete-endpoint"):
        assert any(verb in call for call in calls), verb
    assert "Traceback" not in text
