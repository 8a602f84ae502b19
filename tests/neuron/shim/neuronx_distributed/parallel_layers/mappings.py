from .._absent import absent as reduce_from_tensor_model_parallel_region

__all__ = ["reduce_from_tensor_model_parallel_region"]
