"""A response stream through boto3."""

import json
import sys

import boto3

runtime = boto3.client("sagemaker-runtime")
body = json.dumps({"do": "stream", "parts": 3, "pause": 0.1})
answer = runtime.invoke_endpoint_with_response_stream(EndpointName=sys.argv[1], Body=body)
for event in answer["Body"]:
    print(event["PayloadPart"]["Bytes"].decode().strip())
