"""Requests of the smallest kind: jobs that are a few lines of Python, models that are three empty files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

IMAGE = "000000000000.dkr.ecr.us-west-2.amazonaws.com/test:1"
ROLE = "arn:aws:iam::000000000000:role/local"
# 256 characters fit into an argument, 512 into a value of the environment: the program is put together from there.
BOOT = "import os;exec(''.join(v for k,v in sorted(os.environ.items()) if k.startswith('CODE')))"
QUICK = "print('step=1 loss=0.5')"
PATHS = "import json,os,signal,sys,time\nfrom pathlib import Path\n"
PATHS += "B=Path(os.environ.get('SAGEMAKER_BASE_DIR','/opt/ml'))\n"


def job_request(name: str, code: str = QUICK, image: str = IMAGE, **changes: Any) -> dict[str, Any]:
    """CreateTrainingJob of a few lines of Python; `changes` replace members, None leaves one out."""
    code = PATHS + code
    pieces = {f"CODE{n:02}": code[n * 500 : n * 500 + 500] for n in range(len(code) // 500 + 1)}
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-u", "-c"],
            "ContainerArguments": [BOOT],
            "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=(\S+)"}],
        },
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": "s3://local/out"},
        "ResourceConfig": {"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "Environment": pieces,
    }
    return {k: v for k, v in {**request, **changes}.items() if v is not None}


class Requests:
    """Clients and requests against one server."""

    def __init__(self, server: Any, client: Callable[..., Any], images: dict[str, str] | None = None) -> None:
        self.server = server
        self.images = dict(images or {"train": IMAGE, "serve": IMAGE})  # executor process looks at their names only
        self._made: list[Any] = []
        self._client = client
        self.sm, self.s3 = self.client("sagemaker"), self.client("s3")
        self.runtime, self.logs = self.client("sagemaker-runtime"), self.client("logs")

    def client(self, service: str, **options: Any) -> Any:
        self._made.append(self._client(self.server, service, **options))
        return self._made[-1]

    def close(self) -> None:
        """botocore leaves its connections to the garbage collector, which complains."""
        for client in self._made:
            client.close()

    def job(self, name: str, code: str = QUICK, **changes: Any) -> dict[str, Any]:
        """A CreateTrainingJob request; `changes` replace members, None leaves one out."""
        return job_request(name, code, self.images["train"], **changes)

    def run(self, name: str, code: str = QUICK, **changes: Any) -> dict[str, Any]:
        """Create the job and describe it when it has ended."""
        self.sm.create_training_job(**self.job(name, code, **changes))
        return self.ended(name)

    def ended(self, name: str, within: float = 40) -> dict[str, Any]:
        return self.until(name, lambda d: d["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"), within)

    def until(self, name: str, there: Callable[[dict[str, Any]], bool], within: float = 40) -> dict[str, Any]:
        deadline = time.monotonic() + within
        while True:
            shown: dict[str, Any] = self.sm.describe_training_job(TrainingJobName=name)
            if there(shown):
                return shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)

    def logged(self, name: str) -> dict[str, list[str]]:
        """Stream -> lines of a job."""
        group = "/aws/sagemaker/TrainingJobs"
        found = self.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{name}/")
        out = {}
        for stream in found["logStreams"]:
            raw = self.logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"])
            out[stream["logStreamName"]] = [event["message"] for event in raw["events"]]
        return out

    def logs_or_nothing(self, name: str) -> dict[str, list[str]]:
        """`logged`, also before the first job has made the log group."""
        try:
            return self.logged(name)
        except self.logs.exceptions.ResourceNotFoundException:
            return {}

    def model_files(self) -> None:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            self.s3.put_object(Bucket="local", Key=f"model/{name}", Body=b"{}")

    def config(self, name: str, window: int = 60, data: dict[str, Any] | None = None, **env: str) -> None:
        """CreateModel and CreateEndpointConfig, both called `name`."""
        self.model_files()
        source = {"S3Uri": "s3://local/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
        container = data or {"ModelDataSource": {"S3DataSource": source}}
        self.sm.create_model(
            ModelName=name,
            PrimaryContainer={"Image": self.images["serve"], "Environment": env, **container},
            ExecutionRoleArn=ROLE,
        )
        variant = {
            "VariantName": "AllTraffic",
            "ModelName": name,
            "InstanceType": "ml.inf2.xlarge",
            "InitialInstanceCount": 1,
            "ContainerStartupHealthCheckTimeoutInSeconds": window,
        }
        self.sm.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])

    def deploy(self, name: str, **env: str) -> dict[str, Any]:
        """An endpoint, described when it is no longer Creating."""
        self.config(name, **env)
        self.sm.create_endpoint(EndpointName=name, EndpointConfigName=name)
        return self.settled(name)

    def settled(self, name: str, within: float = 40) -> dict[str, Any]:
        deadline = time.monotonic() + within
        while True:
            shown: dict[str, Any] = self.sm.describe_endpoint(EndpointName=name)
            if shown["EndpointStatus"] in ("InService", "Failed"):
                return shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)

    def delete(self, name: str) -> None:
        self.sm.delete_endpoint(EndpointName=name)
        waiter = self.sm.get_waiter("endpoint_deleted")
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 40})
