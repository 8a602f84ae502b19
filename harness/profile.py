"""Where requests go and as whom. A run file never says; a profile does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """One account, region, role and bucket."""

    account: str
    region: str
    role_arn: str
    bucket: str

    def image(self, name: str) -> str:
        """The repository of one of our images in this account's ECR, without tag or digest."""
        return f"{self.account}.dkr.ecr.{self.region}.amazonaws.com/{name}"


LOCAL = Profile(
    account="000000000000",
    region="us-west-2",  # the lab's region
    role_arn="arn:aws:iam::000000000000:role/local",
    bucket="local",
)
