"""Where else to try when AWS has no instance to give: the next size, the next region. Advice, not a promise."""

from __future__ import annotations

# In the order of price. [api] TrainingInstanceType and ProductionVariantInstanceType of botocore's sagemaker model.
SIZES = (
    ("ml.trn1.2xlarge", "ml.trn1.32xlarge", "ml.trn1n.32xlarge", "ml.trn2.48xlarge"),
    ("ml.inf2.xlarge", "ml.inf2.8xlarge", "ml.inf2.24xlarge", "ml.inf2.48xlarge"),
)
# Regions that offer them, the largest first: https://aws.amazon.com/sagemaker/pricing/ (2025).
REGIONS = {
    "ml.trn": ("us-east-1", "us-west-2", "us-east-2"),
    "ml.inf2": ("us-east-1", "us-west-2", "us-east-2", "eu-central-1", "eu-west-1", "ap-northeast-1"),
}


def hint(instance: str, region: str) -> str:
    """What to change in the run file or the profile, in one line."""
    sizes = next((s for s in SIZES if instance in s), ())
    later = sizes[sizes.index(instance) + 1 :] if sizes else ()
    regions = next((r for kind, r in REGIONS.items() if instance.startswith(kind)), ())
    other = [r for r in regions if r != region]
    ways = [f'compute: "{later[0]}"'] if later else []
    ways += [f"another region, for example NEURON_HARNESS_REGION={other[0]} with a bucket there"] if other else []
    return f"try later, or {', or '.join(ways)}" if ways else "try later, or another instance type or region"
