"""What a profile adds to requests: tags, network, keys, secrets. Pure; the rules are the services' own."""

from __future__ import annotations

from typing import Any

from harness.profile import Profile

RUN_TAG = "neuron-harness:run"
EXPIRES_TAG = "neuron-harness:expires"
# Volumes on these are instance storage, encrypted by the hardware; a request with a key for them is refused:
# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ResourceConfig.html (VolumeKmsKeyId)
LOCAL_STORAGE = ("ml.trn1.", "ml.trn1n.", "ml.trn2.")


def tags(profile: Profile, run_id: str) -> list[dict[str, str]]:
    """On everything that is made: `down` deletes only what carries the first one."""
    return [{"Key": RUN_TAG, "Value": run_id}, *({"Key": k, "Value": v} for k, v in sorted(profile.tags.items()))]


def vpc(profile: Profile) -> dict[str, Any]:
    """VpcConfig, where the profile has one."""
    if not profile.subnets:
        return {}
    return {"VpcConfig": {"Subnets": list(profile.subnets), "SecurityGroupIds": list(profile.security_groups)}}


def object_key(profile: Profile) -> dict[str, str]:
    """OutputDataConfig's KmsKeyId."""
    return {"KmsKeyId": profile.kms_key} if profile.kms_key else {}


def volume_key(profile: Profile, instance: str, name: str) -> dict[str, str]:
    """ResourceConfig's VolumeKmsKeyId, an endpoint configuration's KmsKeyId."""
    return {name: profile.kms_key} if profile.kms_key and not instance.startswith(LOCAL_STORAGE) else {}


def secrets(profile: Profile) -> dict[str, Any]:
    """Environment with ARNs: NAME_SECRET_ARN. containers/secretsmanager.py fetches the values."""
    found = {f"{name}_SECRET_ARN": arn for name, arn in sorted(profile.secrets.items())}
    return {"Environment": found} if found else {}
