from .._absent import absent as bucket_allreduce_gradients

__all__ = ["bucket_allreduce_gradients"]
