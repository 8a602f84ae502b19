from .._absent import Absent


class BaseParallelLinear(Absent):
    pass


class ColumnParallelLinear(BaseParallelLinear):
    pass


class RowParallelLinear(BaseParallelLinear):
    pass


class ParallelEmbedding(Absent):
    pass
