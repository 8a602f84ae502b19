"""Stand-in of a package that is published for Neuron hosts only. Its presence is what optimum-neuron asks for."""


class DataParallel:
    """Inference only; optimum-neuron names it in a type check."""
