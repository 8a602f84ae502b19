from .._absent import absent as clip_grad_norm
from . import parallel_state
from .layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear

__all__ = ["ColumnParallelLinear", "ParallelEmbedding", "RowParallelLinear", "clip_grad_norm", "parallel_state"]
