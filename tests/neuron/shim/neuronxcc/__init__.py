"""Stand-in of the compiler's package: its version goes into optimum-neuron's cache entries."""

__version__ = "2.15.143.0"
