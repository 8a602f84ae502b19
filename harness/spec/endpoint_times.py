"""Every time-out of an endpoint, derived from the run file's startup_seconds and the handler's predict_timeout.

Who gives up when, from the inside out; each must outlast the one before it, or the client gets a worse reason:

| who | what | seconds |
|---|---|---|
| handler | one request | serve.predict_timeout (55) |
| DJL Serving | one request of a worker | the same, OPTION_PREDICT_TIMEOUT; the image has 240 |
| SageMaker | a regular answer | 60, a stream 480 (containers.contract) |
| DJL Serving | a worker's start: reading, compiling, loading | OPTION_MODEL_LOADING_TIMEOUT; the image has 1200 |
| SageMaker | /ping answers 200 | ContainerStartupHealthCheckTimeoutInSeconds |
| SageMaker | the model is there | ModelDataDownloadTimeoutInSeconds |

djl-serving 0.30.0-dlc: serving/docker/pytorch-inf2.Dockerfile (ENV), engines/python, PyModel.java and PyEnv.java.
"""

from __future__ import annotations


def environment(startup_seconds: int) -> dict[str, str]:
    """What CreateModel's Environment tells DJL Serving.

    Workers start one after the other within SageMaker's window, which is the one that counts; the server's own, 20
    minutes in the image, would end a start that may still go on.
    """
    return {"OPTION_MODEL_LOADING_TIMEOUT": str(startup_seconds)}


def variant(startup_seconds: int) -> dict[str, int]:
    """What CreateEndpointConfig's variant tells SageMaker."""
    return {
        "ContainerStartupHealthCheckTimeoutInSeconds": startup_seconds,
        "ModelDataDownloadTimeoutInSeconds": startup_seconds,
    }
