"""SageMaker's instances with NeuronCores: how many each has, and which one is next in size or in another region."""

from __future__ import annotations

CORES_PER_DEVICE = 2  # Trainium 1 and Inferentia 2; as train/launch.py counts
# Neuron SDK, general/arch/neuron-hardware. In each family in the order of price; the names are those of
# TrainingInstanceType and ProductionVariantInstanceType in botocore's sagemaker model.
CORES = {
    "ml.trn1.2xlarge": 2,
    "ml.trn1.32xlarge": 32,
    "ml.trn1n.32xlarge": 32,
    "ml.inf2.xlarge": 2,
    "ml.inf2.8xlarge": 2,
    "ml.inf2.24xlarge": 12,
    "ml.inf2.48xlarge": 24,
}
# Regions that offer them, the largest first: https://aws.amazon.com/sagemaker/pricing/ (2025).
REGIONS = {
    "ml.trn": ("us-east-1", "us-west-2", "us-east-2"),
    "ml.inf2": ("us-east-1", "us-west-2", "us-east-2", "eu-central-1", "eu-west-1", "ap-northeast-1"),
}


def capacity_hint(instance: str, region: str) -> str:
    """What to change where AWS has no instance to give, in one line: the next size, another region."""
    family = [name for name in CORES if name.startswith(instance.rpartition(".")[0][:6])]
    later = family[family.index(instance) + 1 :] if instance in family else []
    regions = next((r for kind, r in REGIONS.items() if instance.startswith(kind)), ())
    other = [r for r in regions if r != region]
    ways = [f'compute: "{later[0]}"'] if later else []
    ways += [f"another region, for example NEURON_HARNESS_REGION={other[0]} with a bucket there"] if other else []
    return f"try later, or {', or '.join(ways)}" if ways else "try later, or another instance type or region"
