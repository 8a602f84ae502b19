"""A profile that fits the account: proposed from what AWS knows, bucket and role made on request."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.aws.errors import is_taken
from harness.aws.session import Aws
from harness.errors import HarnessError, InvalidInput
from harness.estimate import spend
from harness.sagemaker import preflight
from harness.spec import profile as profiles
from harness.spec.profile import Profile

Say = Callable[[str], None]
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}


def propose(file: Path | None, wanted: Mapping[str, str]) -> Profile:
    """The profile that is there with `wanted` put over it; what nobody says is asked from AWS or named after it."""
    try:
        return profiles.load(file, **wanted)
    except HarnessError:
        if (file or profiles.path()).is_file():
            raise
    environment = {
        k: os.environ.get(profiles.PREFIX + k.upper(), "") for k in ("account", "region", "role_arn", "bucket")
    }
    given = {**environment, **{k: v for k, v in wanted.items() if v}}
    region = given["region"] or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-west-2"
    account = given["account"]
    if not account:
        account = str(Aws(Profile("", region, "", "")).call("sts", "get_caller_identity")["Account"])
    raw = {
        "account": account,
        "region": region,
        "role_arn": given["role_arn"] or f"arn:aws:iam::{account}:role/neuron-harness",
        "bucket": given["bucket"] or f"neuron-harness-{account}-{region}",
        "expiry_role_arn": f"arn:aws:iam::{account}:role/neuron-harness-expiry",
    }
    if wrong := profiles.check(raw):
        raise InvalidInput("; ".join(wrong))
    return profiles.from_json(raw)


def finish(profile: Profile, make: bool, say: Say) -> None:
    """Make what is missing if wanted, then check. Raises InvalidInput with every problem."""
    aws = Aws(profile)
    preflight.identity(aws, profile)
    if make:
        create(aws, profile, say)
    problems = preflight.check_role(aws, profile) + preflight.check_expiry_role(aws, profile)
    problems += preflight.check_bucket(aws, profile)
    problems += preflight.check_key(aws, profile) + preflight.check_network(aws, profile)
    if profile.serving is not profile:
        there = profile.serving
        problems += preflight.check_bucket(aws, there) + preflight.check_key(aws, there)
        problems += preflight.check_network(aws, there)
    if problems:
        raise InvalidInput.of(problems)


def create(aws: Aws, profile: Profile, say: Say) -> None:
    """The buckets and the role, where they are missing; nothing that is there is changed."""
    for where in {id(p): p for p in (profile, profile.serving)}.values():
        if preflight.check_bucket(aws, where) and _create_bucket(aws, where):
            say(f"made bucket {where.bucket} in {where.region}")
    document = execution_policy(profile)
    if preflight.check_role(aws, profile) and _create_role(aws, profile, profile.role_arn, TRUST, document):
        say(f"made role {profile.role_arn}")
    arn, trust = profile.expiry_role_arn, spend.trust_policy(profile.account)
    document = spend.permission_policy(profile.account)
    if preflight.check_expiry_role(aws, profile) and _create_role(aws, profile, arn, trust, document):
        say(f"made role {arn}")


def _create_bucket(aws: Aws, profile: Profile) -> bool:
    place = {} if profile.region == "us-east-1" else {"LocationConstraint": profile.region}
    more: dict[str, Any] = {"CreateBucketConfiguration": place} if place else {}
    try:
        aws.call("s3", "create_bucket", profile.region, Bucket=profile.bucket, **more)
    except HarnessError as error:
        if not is_taken(error):
            raise
        return False  # it is there: the check that follows says what is wrong with it
    blocked = dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )
    block = {"Bucket": profile.bucket, "PublicAccessBlockConfiguration": blocked}
    aws.call("s3", "put_public_access_block", profile.region, **block)
    if profile.tags:
        tags = [{"Key": k, "Value": v} for k, v in profile.tags.items()]
        aws.call("s3", "put_bucket_tagging", profile.region, Bucket=profile.bucket, Tagging={"TagSet": tags})
    return True


def _create_role(aws: Aws, profile: Profile, arn: str, trust: dict[str, Any], policy: dict[str, Any]) -> bool:
    name = arn.rsplit("/", 1)[1]
    more: dict[str, Any] = {"Tags": [{"Key": k, "Value": v} for k, v in profile.tags.items()]} if profile.tags else {}
    if profile.permissions_boundary:
        more["PermissionsBoundary"] = profile.permissions_boundary
    try:
        aws.call("iam", "create_role", RoleName=name, AssumeRolePolicyDocument=json.dumps(trust), **more)
    except HarnessError as error:
        if not is_taken(error):
            raise
        return False
    policy_text = json.dumps(policy)
    aws.call("iam", "put_role_policy", RoleName=name, PolicyName="neuron-harness", PolicyDocument=policy_text)
    return True


def execution_policy(profile: Profile) -> dict[str, Any]:
    """What containers may do: their buckets, their images, their logs, and nothing else."""
    buckets = list(dict.fromkeys([profile.bucket, profile.serving.bucket]))
    statements: list[dict[str, Any]] = [
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], [f"arn:aws:s3:::{b}" for b in buckets]),
        _allow(["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], [f"arn:aws:s3:::{b}/*" for b in buckets]),
        _allow(["ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"], ["*"]),
        _allow(
            ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"],
            [f"arn:aws:ecr:*:{profile.account}:repository/neuron-*"],
        ),
        _allow(
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
            [f"arn:aws:logs:*:{profile.account}:log-group:/aws/sagemaker/*"],
        ),
    ]
    if profile.subnets or profile.serving.subnets:
        names = ["CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface"]
        names += ["DeleteNetworkInterfacePermission", "DescribeNetworkInterfaces", "DescribeVpcs"]
        names += ["DescribeDhcpOptions", "DescribeSubnets", "DescribeSecurityGroups"]
        statements.append(_allow([f"ec2:{name}" for name in names], ["*"]))
    if keys := [key for key in dict.fromkeys([profile.kms_key, profile.serving.kms_key]) if key]:
        statements.append(_allow(["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:CreateGrant"], keys))
    if profile.secrets:
        statements.append(_allow(["secretsmanager:GetSecretValue"], sorted(profile.secrets.values())))
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(actions: list[str], on: list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": on}


def local(profile: Profile, url: str) -> None:
    """Bucket and role in a local SageMaker."""
    there = replace(profile, endpoint_url=url)
    create(Aws(there), there, lambda _: None)
