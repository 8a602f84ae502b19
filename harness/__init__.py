"""Fine-tune LLMs on AWS Trainium and serve them on Inferentia2 from your own container images."""

import sys
from pathlib import Path

_PRODUCT = Path(__file__).resolve().parent / "product"
if _PRODUCT.is_dir():  # installed from a wheel: containers and serve are inside (harness/paths.py)
    sys.path.insert(0, str(_PRODUCT))
