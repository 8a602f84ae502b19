"""A public Trainium notebook's call: the HuggingFace estimator with a script, on our image. The script is not run."""

import logging

import boto3
import sagemaker
from sagemaker.huggingface import HuggingFace

logging.disable(logging.WARNING)
session = sagemaker.Session(default_bucket="local")
estimator = HuggingFace(
    entry_point="train.py",
    source_dir="scripts",
    image_uri="000000000000.dkr.ecr.us-west-2.amazonaws.com/neuron-train:local",
    role="arn:aws:iam::000000000000:role/local",
    instance_count=1,
    instance_type="ml.trn1.2xlarge",
    py_version="py310",
    hyperparameters={
        "model_name_or_path": "/opt/ml/input/data/model",
        "max_steps": 2,
        "block_size": 64,
        "output_dir": "/opt/ml/model",
        "bf16": False,
    },
    output_path="s3://local/v2",
    sagemaker_session=session,
)
estimator.fit({name: f"s3://local/v2/{name}" for name in ("model", "train")}, job_name="v2-script", logs="All")
sent = boto3.client("sagemaker").describe_training_job(TrainingJobName="v2-script")["HyperParameters"]
print("### sent", sorted(sent))
