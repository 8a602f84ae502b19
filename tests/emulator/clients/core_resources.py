"""sagemaker-core's resources: TrainingJob and Endpoint, created, waited for, used, deleted."""

import contextlib
import io
import logging

logging.disable(logging.CRITICAL)
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    from sagemaker.core import shapes
    from sagemaker.core.resources import Endpoint, EndpointConfig, Model, TrainingJob

ROLE = "arn:aws:iam::000000000000:role/local"
IMAGE = "000000000000.dkr.ecr.us-west-2.amazonaws.com/x:1"


def quietly(call, *args, **kwargs):
    """Its waiters draw on the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call(*args, **kwargs)


job = quietly(
    TrainingJob.create,
    training_job_name="core",
    role_arn=ROLE,
    algorithm_specification=shapes.AlgorithmSpecification(
        training_image=IMAGE,
        training_input_mode="File",
        container_entrypoint=["python", "-c", "print('step=1')"],
    ),
    output_data_config=shapes.OutputDataConfig(s3_output_path="s3://local/out"),
    resource_config=shapes.ResourceConfig(instance_type="ml.trn1.2xlarge", instance_count=1, volume_size_in_gb=10),
    stopping_condition=shapes.StoppingCondition(max_runtime_in_seconds=60),
)
quietly(job.wait, poll=1)
print("TrainingJob", job.training_job_name, job.training_job_status)
source = shapes.S3ModelDataSource(s3_uri="s3://local/model/", s3_data_type="S3Prefix", compression_type="None")
container = shapes.ContainerDefinition(image=IMAGE, model_data_source=shapes.ModelDataSource(s3_data_source=source))
model = quietly(Model.create, model_name="core", primary_container=container, execution_role_arn=ROLE)
variant = shapes.ProductionVariant(
    variant_name="AllTraffic", model_name="core", instance_type="ml.inf2.xlarge", initial_instance_count=1
)
config = quietly(EndpointConfig.create, endpoint_config_name="core", production_variants=[variant])
endpoint = quietly(Endpoint.create, endpoint_name="core", endpoint_config_name="core")
quietly(endpoint.wait_for_status, "InService", poll=1)
print("Endpoint", endpoint.endpoint_name, endpoint.endpoint_status)
answer = quietly(endpoint.invoke, body=b'{"do": "status", "status": 200, "text": "fine"}')
print("invoke", answer.body.read().decode())
for resource in (endpoint, config, model):
    quietly(resource.delete)
quietly(endpoint.wait_for_delete, poll=1)
print("deleted")
