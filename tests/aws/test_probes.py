"""What `harness doctor --aws` asks, against moto: what is found, what is missing, and that no question hangs."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from botocore.stub import Stubber

from harness import doctor
from harness.aws.session import Aws
from harness.errors import HarnessError, InvalidInput, MissingPrerequisite
from harness.executors.neuron_host import Host
from harness.run import probes
from harness.sagemaker import account, preflight
from harness.spec.profile import Profile
from harness.spec.runfile import RunFile

RUN = RunFile.model_validate({"name": "x", "model": {"id": "a/b"}, "data": {"id": "c/d"}})
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def asked(aws: Aws, profile: Profile) -> dict[str, str]:
    """Name -> what was found, or "-" and what is missing."""
    found = {}
    for name, ask in probes.of_account(aws, profile, RUN):
        try:
            found[name] = probes.within(ask)
        except HarnessError as error:
            found[name] = f"- {error.problems[0].what}"
    return found


def test_an_account_that_was_set_up(aws: Aws, profile: Profile) -> None:
    whole = replace(profile, expiry_role_arn=profile.role_arn.replace("neuron-harness", "expiry"))
    account.create(aws, whole, lambda _: None)
    found = asked(aws, whole)
    assert found.pop("AWS identity").startswith(f"arn:aws:sts::{profile.account}:")
    assert found.pop("AWS clock") in ("0 s off", "1 s off")
    assert found.pop("ECR images").startswith("- no image of stack")  # none was pushed
    assert "list_service_quotas" in found.pop("quotas"), "moto has none: the next test is about them"
    assert found == {
        "AWS region": "us-west-2",
        "AWS role": whole.role_arn,
        "AWS expiry": whole.expiry_role_arn,
        "AWS bucket": whole.bucket,
    }


@pytest.mark.parametrize(("value", "said"), [(1.0, []), (0.0, ["is 0, the run needs 1"])])
def test_quotas_are_asked_for_the_run_files_instances(
    aws: Aws, profile: Profile, value: float, said: list[str]
) -> None:
    rows = [{"QuotaName": "ml.trn1.2xlarge for training job usage", "Value": value}]
    rows += [{"QuotaName": "ml.inf2.xlarge for endpoint usage", "Value": 2.0}]
    with Stubber(aws.client("service-quotas", "us-west-2")) as answers:
        for _ in range(2):
            answers.add_response("list_service_quotas", {"Quotas": rows}, {"ServiceCode": "sagemaker"})
        problems = preflight.check_quotas(aws, profile, RUN)
    assert len(problems) == len(said)
    assert all(text in problem.what for text, problem in zip(said, problems, strict=True))


def test_what_is_missing_is_named_one_by_one(aws: Aws, profile: Profile) -> None:
    there = replace(profile, region="us-east-1", bucket="b-east", serve_region="")
    wrong = replace(
        profile,
        role_arn=f"{profile.role_arn}-no",
        bucket="no-bucket",
        kms_key=f"arn:aws:kms:us-west-2:{profile.account}:key/11111111-2222-3333-4444-555555555555",
        serve_region=there.region,
        serve_bucket=there.bucket,
    )
    found = asked(aws, wrong)
    assert found["AWS role"] == f"- there is no role {wrong.role_arn}"
    assert found["AWS bucket"] == "- there is no bucket no-bucket"
    assert found["AWS key"].startswith("- there is no key")
    assert found["AWS bucket in us-east-1"] == "- there is no bucket b-east"
    assert found["AWS expiry"] == "- the profile has no expiry_role_arn"
    far = replace(profile, region="ca-west-1")
    with pytest.raises(InvalidInput, match=r"ml\.trn1\.2xlarge is not known to be in ca-west-1"):
        probes.region(RUN, far)


def test_a_question_without_an_answer_is_given_up() -> None:
    with pytest.raises(MissingPrerequisite, match="no answer within 0 s"):
        probes.within(lambda: time.sleep(600) or "", 0.2)
    with pytest.raises(ZeroDivisionError):
        probes.within(lambda: str(1 // 0))


@pytest.mark.parametrize(("off", "said"), [(400, "400 s fast"), (-301, "301 s slow")])
def test_a_clock_that_aws_would_refuse(off: int, said: str) -> None:
    answer = {
        "ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(NOW - timedelta(seconds=off), usegmt=True)}}
    }
    with pytest.raises(InvalidInput, match=said):
        probes.clock(answer, NOW)
    assert probes.clock(answer, NOW - timedelta(seconds=off)) == "0 s off"
    with pytest.raises(MissingPrerequisite, match="no time"):
        probes.clock({}, NOW)


def test_doctor_asks_no_further_without_an_identity(
    profile: Profile, standard_chain: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (check,) = doctor.look_at_aws(RUN)
    assert (check.ok, check.remedy) == (False, "write one: harness init")
    for key in ("account", "region", "role_arn", "bucket"):
        monkeypatch.setenv(f"NEURON_HARNESS_{key.upper()}", getattr(profile, key))
    names = [check.name for check in doctor.look_at_aws(RUN)]
    assert names[:3] == ["AWS identity", "AWS clock", "AWS region"]
    assert names[-1] == "quotas"
    monkeypatch.setenv("NEURON_HARNESS_ACCOUNT", "999999999999")
    (check,) = doctor.look_at_aws(RUN)
    assert not check.ok
    assert "not 123456789012" in check.found


def test_a_neuron_host_has_tools_and_memory(tmp_path: Path) -> None:
    assert list(probes.of_neuron_host(Host((), (), "", tmp_path))) == []
    names = [name for name, _ in probes.of_neuron_host(Host(("/dev/neuron0",), (), "2.18.0", tmp_path))]
    assert names == ["Neuron tools", "host memory"]
    with pytest.raises(MissingPrerequisite, match="not there: neuron-ls, neuron-top"):
        probes.tools(tmp_path)
    folder = tmp_path / probes.TOOLS_IN
    folder.mkdir(parents=True)
    for name in probes.TOOLS:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    assert probes.tools(tmp_path) == "neuron-ls, neuron-top"
    assert probes.memory(16 * 2**30 * 0.96, 12 * 2**30) == "15 GiB, 12 GiB of it free"
    with pytest.raises(MissingPrerequisite, match="8 GiB"):
        probes.memory(8 * 2**30, 4 * 2**30)
