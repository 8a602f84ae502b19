"""boto3's four waiters: training_job_completed_or_stopped, endpoint_in_service, endpoint_deleted, object_exists."""

import boto3
from botocore.exceptions import WaiterError

ROLE = "arn:aws:iam::000000000000:role/local"
IMAGE = "000000000000.dkr.ecr.us-west-2.amazonaws.com/x:1"
sagemaker = boto3.client("sagemaker")
often = {"Delay": 1, "MaxAttempts": 60}


def job(name, code):
    sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-c", code],
        },
        OutputDataConfig={"S3OutputPath": "s3://local/out"},
        ResourceConfig={"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    sagemaker.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=name, WaiterConfig=often)
    print(name, sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"])


job("boto3", "import os;open(os.environ['SAGEMAKER_BASE_DIR']+'/model/w','w').write('w')")
boto3.client("s3").get_waiter("object_exists").wait(Bucket="local", Key="out/boto3/output/model.tar.gz")
try:
    job("boto3-fails", "raise SystemExit(3)")
except WaiterError as error:
    print(error)
source = {"S3Uri": "s3://local/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
sagemaker.create_model(
    ModelName="boto3",
    ExecutionRoleArn=ROLE,
    PrimaryContainer={"Image": IMAGE, "ModelDataSource": {"S3DataSource": source}},
)
variant = {"VariantName": "AllTraffic", "ModelName": "boto3", "InstanceType": "ml.inf2.xlarge"}
sagemaker.create_endpoint_config(
    EndpointConfigName="boto3", ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
)
sagemaker.create_endpoint(EndpointName="boto3", EndpointConfigName="boto3")
sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="boto3", WaiterConfig=often)
print("endpoint InService")
sagemaker.delete_endpoint(EndpointName="boto3")
sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="boto3", WaiterConfig=often)
print("endpoint deleted")
