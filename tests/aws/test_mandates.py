"""Network, keys, tags and secrets of the profile are on every request, as the services take them, in each region."""

from __future__ import annotations

from typing import Any

import pytest

from harness.spec import plan as plans, profile as profiles, service_model, stacks
from harness.spec.plan import PLACEHOLDERS, RUN_TAG, Plan
from harness.spec.runfile import RunFile

ID = "x-20260101-000000-abcd"
HERE, THERE = "arn:aws:kms:us-west-2:123456789012:key/here", "arn:aws:kms:us-east-2:123456789012:key/there"
SECRET = "arn:aws:secretsmanager:us-west-2:123456789012:secret:hf-AbCdEf"
RAW: dict[str, Any] = {
    "account": "123456789012",
    "region": "us-west-2",
    "role_arn": "arn:aws:iam::123456789012:role/r",
    "bucket": "here",
    "kms_key": HERE,
    "subnets": ["subnet-here"],
    "security_groups": ["sg-here"],
    "serve_region": "us-east-2",
    "serve_bucket": "there",
    "serve_kms_key": THERE,
    "serve_subnets": ["subnet-there"],
    "serve_security_groups": ["sg-there"],
    "tags": {"CostCentre": "4711", "Owner": "ml"},
    "secrets": {"HF_TOKEN": SECRET},
}


def made(**changes: Any) -> Plan:
    """A plan whose model comes from the hub, so that the job has a network; `changes` are those of [compute]."""
    run = {"name": "x", "model": {"id": "a/b"}, "data": {"id": "c/d"}, "compute": changes}
    assert profiles.check(RAW) == []
    stack = stacks.get(stacks.DEFAULT)
    return plans.make(RunFile.model_validate(run), stack, profiles.from_json(RAW), ID)


def test_what_an_organisation_wants_is_on_every_request() -> None:
    plan = made()
    job, model, config = plan.create_training_job, plan.tuned.create_model, plan.tuned.create_endpoint_config
    assert job["VpcConfig"] == {"Subnets": ["subnet-here"], "SecurityGroupIds": ["sg-here"]}
    assert job["OutputDataConfig"]["KmsKeyId"] == HERE
    assert "VolumeKmsKeyId" not in job["ResourceConfig"], "Trainium's volumes are instance storage"
    assert job["Environment"] == {"HF_TOKEN_SECRET_ARN": SECRET}
    assert model["VpcConfig"] == {"Subnets": ["subnet-there"], "SecurityGroupIds": ["sg-there"]}
    assert config["KmsKeyId"] == THERE
    assert "Environment" not in config
    mine = [{"Key": RUN_TAG, "Value": ID}, {"Key": "CostCentre", "Value": "4711"}, {"Key": "Owner", "Value": "ml"}]
    for operation, request in plans.requests_of(plan):
        assert request["Tags"][:3] == mine, operation


@pytest.mark.parametrize("volume", [1, 512])
def test_options_of_compute_reach_the_request_as_botocore_has_them(volume: int) -> None:
    plan = made(
        train_instance="ml.g5.xlarge",
        train_instance_count=2,
        serve_instance="ml.g5.2xlarge",
        volume_gb=volume,
        max_runtime_seconds=60,
        max_pending_seconds=1800,
        startup_seconds=61,
    )
    job = plan.create_training_job
    assert job["ResourceConfig"] == {
        "InstanceType": "ml.g5.xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": volume,
        "VolumeKmsKeyId": HERE,
    }
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 60, "MaxPendingTimeInSeconds": 1800}
    (variant,) = plan.tuned.create_endpoint_config["ProductionVariants"]
    assert variant["InstanceType"] == "ml.g5.2xlarge"
    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 61
    assert "InferenceAmiVersion" not in variant
    for operation, request in plans.requests_of(plan):
        service_model.validate("sagemaker", operation, plans.resolve(request, PLACEHOLDERS))


def test_a_spot_job_waits_for_its_run_time_and_for_instances() -> None:
    job = made(spot=True, max_runtime_seconds=3600, max_pending_seconds=1800).create_training_job
    assert job["EnableManagedSpotTraining"] is True
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 5400}
    assert "EnableManagedSpotTraining" not in made().create_training_job
