"""SageMaker SDK v2, as a notebook has it: fit with logs, attach, deploy, predict, predict_stream, DJLModel, clean up.

After `eval "$(harness local env)"` with the two arguments that keep it from asking STS by its full address: a bucket
and a role's ARN.
"""

import json
import logging
import sys

import boto3
import sagemaker
from botocore.exceptions import ClientError
from sagemaker.deserializers import JSONDeserializer
from sagemaker.djl_inference import DJLModel
from sagemaker.estimator import Estimator
from sagemaker.iterators import LineIterator
from sagemaker.model import Model
from sagemaker.predictor import Predictor
from sagemaker.serializers import JSONSerializer

logging.disable(logging.WARNING)
TRAIN = "000000000000.dkr.ecr.us-west-2.amazonaws.com/neuron-train:local"
SERVE = "000000000000.dkr.ecr.us-west-2.amazonaws.com/neuron-serve:local"
ROLE = "arn:aws:iam::000000000000:role/local"
FLAGS = {
    "model_name_or_path": "/opt/ml/input/data/model",
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "block_size": 64,
    "logging_steps": 2,
}


def say(*words):
    print("###", *words, flush=True)


session = sagemaker.Session(default_bucket="local")
say("default_bucket", session.default_bucket())
channels = {name: session.upload_data(name, key_prefix=f"v2/{name}") for name in ("model", "train")}
say("upload_data", channels)
estimator = Estimator(
    TRAIN, ROLE, 1, "ml.trn1.2xlarge", hyperparameters=FLAGS, output_path="s3://local/v2", sagemaker_session=session
)
say("fit with logs")
estimator.fit(channels, job_name="v2", logs="All")
say("model_data", estimator.model_data)
attached = Estimator.attach("v2", sagemaker_session=session)
say("attach", attached.latest_training_job.name, attached.model_data == estimator.model_data)

model = Model(SERVE, attached.model_data, ROLE, name="v2", predictor_cls=Predictor, sagemaker_session=session)
predictor = model.deploy(1, "ml.inf2.xlarge", endpoint_name="v2", serializer=JSONSerializer())
say("deployed", predictor.endpoint_name)
request = {"inputs": "v1 red:", "parameters": {"max_new_tokens": 4}}
predictor.deserializer = JSONDeserializer()
answer = predictor.predict(request)
say("predict", list(answer))
parts = predictor.predict_stream({**request, "stream": True}, iterator=LineIterator)
say("predict_stream", sorted({key for part in parts for key in json.loads(part)}))
predictor.delete_endpoint()
model.delete_model()
left = boto3.client("sagemaker").list_endpoint_configs(NameContains="v2")["EndpointConfigs"]
say("deleted; configurations left:", len(left))

say("DJLModel with model data in S3")
djl = DJLModel(model_data=attached.model_data, role=ROLE, image_uri=SERVE, name="v2-djl", sagemaker_session=session)
predictor = djl.deploy(instance_type="ml.inf2.xlarge", initial_instance_count=1, endpoint_name="v2-djl")
say("predict", list(predictor.predict(request)))
predictor.delete_endpoint()
for what, djl in {
    "a model by hub id": DJLModel(model_id="gpt2", role=ROLE, image_uri=SERVE, sagemaker_session=session),
    "a foreign image": DJLModel(
        model_data=attached.model_data,
        role=ROLE,
        image_uri="763104351884.dkr.ecr.us-west-2.amazonaws.com/djl-inference:0.30.0-neuronx-sdk2.20.1",
        sagemaker_session=session,
    ),
}.items():
    try:
        djl.deploy(instance_type="ml.inf2.xlarge", initial_instance_count=1)
    except ClientError as error:
        say(what, error.operation_name, error.response["Error"]["Message"])
    else:
        sys.exit(f"{what} was deployed")
