from .._absent import Absent


class NxDPPModel(Absent):
    """No model is one."""
