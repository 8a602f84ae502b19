"""Test-only stand-in of neuronx-distributed 0.9: the names optimum-neuron 0.0.28 touches at TP = PP = 1, and no more.

Written from the behaviour of the public source at commit 083d3ea (release 2.20). It holds no loss, no optimizer and
no loop: those are the real ones. Whatever would need a second core raises.
"""

from . import parallel_layers

__version__ = "0.9.0"
__all__ = ["parallel_layers"]
