"""SageMaker's instances with NeuronCores: how many each has, and which one is next in size or in another region.

The table is the estimator's (harness/estimate/data/instances.json); of each family in the order of price.
"""

from __future__ import annotations

from harness.estimate import hardware

CORES_PER_DEVICE = 2  # Trainium 1 and Inferentia 2; as train/launch.py counts
GENERATION = ("trn1", "inf2")  # what the stacks' images run on; trn2 has devices of eight cores, and newer images
CORES = {f"ml.{name}": one.cores for name, one in hardware.instances().items() if name.startswith(GENERATION)}


def capacity_hint(instance: str, region: str) -> str:
    """What to change where AWS has no instance to give, in one line: the next size, another region."""
    family = [name for name in CORES if name.startswith(instance.rpartition(".")[0][:6])]
    later = family[family.index(instance) + 1 :] if instance in family else []
    found = hardware.find(instance)
    other = [r for r in found.regions if r != region] if found else []
    ways = [f'compute: "{later[0]}"'] if later else []
    ways += [f"another region, for example NEURON_HARNESS_REGION={other[0]} with a bucket there"] if other else []
    return f"try later, or {', or '.join(ways)}" if ways else "try later, or another instance type or region"
