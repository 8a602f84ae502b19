from .._absent import Absent


class GQAQKVColumnParallelLinear(Absent):
    pass
