from transformers.utils.fx import HFTracer as HFTracerWrapper


class NxDTracer(HFTracerWrapper):
    pass
