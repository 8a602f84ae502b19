"""`python -m tests.neuron.compare A B C`: largest difference of A's and B's weights, and of A's and C's."""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

a, *others = (load_file(Path(folder) / "model.safetensors") for folder in sys.argv[1:])
print(json.dumps([max(float((a[k].float() - b[k].float()).abs().max()) for k in {*a, *b}) for b in others]))
