"""docs/aws.md lists the permissions that the code needs: no call is missing there, none is there for nothing."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from harness.sagemaker.resources import KINDS
from harness.spec import service_model

# What boto3 calls by another name than IAM, or what one call needs besides.
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html and its neighbours
ACTIONS = {
    "s3:HeadBucket": ["s3:ListBucket"],
    "s3:HeadObject": ["s3:GetObject"],
    "s3:ListObjectsV2": ["s3:ListBucket"],
    "s3:DeleteObjects": ["s3:DeleteObject"],
    "s3:DownloadFile": ["s3:GetObject"],
    "s3:CopyObject": ["s3:GetObject", "s3:PutObject"],
    "s3:UploadPartCopy": ["s3:GetObject", "s3:PutObject"],
    "s3:PutObject": ["s3:PutObject"],
    "s3:CreateMultipartUpload": ["s3:PutObject"],
    "s3:UploadPart": ["s3:PutObject"],
    "s3:CompleteMultipartUpload": ["s3:PutObject"],
    "s3:ListParts": ["s3:ListMultipartUploadParts"],
    "s3:PutPublicAccessBlock": ["s3:PutBucketPublicAccessBlock"],
    "sts:GetCallerIdentity": [],  # needs no permission
    "sagemaker:CreateTrainingJob": ["sagemaker:CreateTrainingJob", "sagemaker:AddTags", "iam:PassRole"],
    "service-quotas:ListServiceQuotas": ["servicequotas:ListServiceQuotas"],
    "kms:DescribeKey": ["kms:DescribeKey", "kms:GenerateDataKey", "kms:Decrypt", "kms:CreateGrant"],
    "iam:CreateRole": ["iam:CreateRole", "iam:TagRole"],
    "ecr:CreateRepository": ["ecr:CreateRepository", "ecr:TagResource"],
    # https://docs.aws.amazon.com/AmazonECR/latest/userguide/image-push-iam.html: what docker does with the token. The
    # Deep Learning Containers are pulled with it, too.
    "ecr:GetAuthorizationToken": [
        "ecr:GetAuthorizationToken",
        "ecr:BatchCheckLayerAvailability",
        "ecr:GetDownloadUrlForLayer",
        "ecr:InitiateLayerUpload",
        "ecr:UploadLayerPart",
        "ecr:CompleteLayerUpload",
        "ecr:PutImage",
    ],
}
SETUP_ONLY = (
    "s3:CreateBucket",
    "s3:PutPublicAccessBlock",
    "s3:PutBucketTagging",
    "iam:CreateRole",
    "iam:PutRolePolicy",
)
IMAGES_ONLY = (
    "ecr:BatchGetImage",
    "ecr:CreateRepository",
    "ecr:DescribeRepositories",
    "ecr:GetAuthorizationToken",
    "ecr:PutLifecyclePolicy",
)


def calls(root: Path) -> set[str]:
    """ "service:Operation" of every call through Aws.call and Aws.pages; f-strings go over the kinds of resource."""
    found = set()
    for path in (root / "harness").rglob("*.py"):
        if path.parent.name == "emulator":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) >= 2:
                service = node.args[0]
                if node.func.attr in ("call", "pages") and isinstance(service, ast.Constant):
                    found |= {f"{service.value}:{_camel(name)}" for name in _names(node.args[1])}
    return {name.replace("sagemaker-runtime:", "sagemaker:") for name in found if _exists(name)}


def _names(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [node.value]
    if isinstance(node, ast.Name):  # `operation`, just above it
        return ["invoke_endpoint_with_response_stream"]
    assert isinstance(node, ast.JoinedStr), ast.dump(node)
    return [
        "".join(part.value if isinstance(part, ast.Constant) else kind.noun for part in node.values)
        for kind in KINDS.values()
    ]


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _exists(name: str) -> bool:
    service, operation = name.split(":")
    if name == "sagemaker:DeleteTrainingJob":
        return False  # `down` stops jobs and keeps their history
    known = service_model.load(service).operation_names
    return operation in known or name in ACTIONS


def policy(root: Path, tag: str) -> dict[str, Any]:
    text = (root / "docs" / "aws.md").read_text()
    (block,) = re.findall(rf"^```json {tag}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return json.loads(block)


def actions(document: dict[str, Any]) -> set[str]:
    listed = [action for statement in document["Statement"] for action in statement["Action"]]
    assert len(listed) == len(set(listed)), "an action is there twice"
    return set(listed)


def needed(found: set[str]) -> set[str]:
    return {action for call in found for action in ACTIONS.get(call, [call])}


def test_the_policies_are_what_the_code_calls(root: Path) -> None:
    found = calls(root)
    assert {"sagemaker:CreateEndpoint", "sagemaker:ListEndpointConfigs", "ecr:DescribeImages"} <= found
    assert "sagemaker:InvokeEndpointWithResponseStream" in found
    setup = {call for call in found if call in SETUP_ONLY}
    assert len(setup) == len(SETUP_ONLY)
    images = {call for call in found if call in IMAGES_ONLY}
    assert len(images) == len(IMAGES_ONLY)
    prices = {call for call in found if call.startswith("pricing:")}
    assert sorted(actions(policy(root, "run-policy"))) == sorted(needed(found - setup - images - prices))
    assert sorted(actions(policy(root, "prices-policy"))) == sorted(needed(prices))
    assert sorted(actions(policy(root, "images-policy"))) == sorted(needed(images))
    assert sorted(actions(policy(root, "setup-policy"))) == sorted(needed(setup))


def test_the_roles_policy_is_confined(root: Path) -> None:
    from harness.sagemaker.account import execution_policy
    from harness.spec.profile import LOCAL

    for statement in execution_policy(LOCAL)["Statement"]:
        if statement["Resource"] == ["*"]:
            assert set(statement["Action"]) <= {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
        assert not any("*" in action for action in statement["Action"])
