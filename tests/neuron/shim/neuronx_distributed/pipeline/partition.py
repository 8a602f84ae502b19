from .._absent import absent as analyze_shared_weights_across_stages

__all__ = ["analyze_shared_weights_across_stages"]
