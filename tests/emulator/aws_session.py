"""Sessions of unmodified clients with a local SageMaker, as one page: docs/reference/aws-transcripts.md.

`python -m tests.emulator.aws_session` records the page (`make aws-transcripts`); test_aws_session.py compares it. The
AWS CLI and sagemaker-core are in .venv-aws; boto3's scripts run in .venv. What differs each time is masked.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.local import control
from tests.emulator.conftest import start

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "aws-transcripts.md"
SCRIPTS = Path(__file__).parent / "clients"
HEAD = """# Sessions of unmodified AWS clients with the local SageMaker

Recorded by `make aws-transcripts`, replayed by `make test-aws`: AWS CLI 1.46.3, boto3 1.44.5, sagemaker-core 2.27.0,
after `eval "$(harness local env)"`. The job is a line of Python, and a small stand-in answers for DJL Serving;
times, ports and ids are masked. The AWS CLI has no command for response streams, so that boto3 shows those.
"""
IMAGE = "000000000000.dkr.ecr.us-west-2.amazonaws.com/x:1"
ROLE = "arn:aws:iam::000000000000:role/local"
JOB = "aws sagemaker create-training-job --cli-input-json file://{name}.json"
GOOD = "import os,time;print('hello from the job');open(os.environ['SAGEMAKER_BASE_DIR']+'/model/w','w').write('w')"
LONG = "import time;time.sleep(60)"
SOURCE = "{S3DataSource={S3Uri=s3://local/model/,S3DataType=S3Prefix,CompressionType=None}}"
NAMED = "--query '[TrainingJobStatus,SecondaryStatus,ModelArtifacts.S3ModelArtifacts]' --output text"
COMMANDS = [
    "cat cli.json",
    "aws sts get-caller-identity --query Account --output text",
    "aws s3 mb s3://mine",
    "aws s3 cp data.txt s3://mine/data/data.txt --no-progress",
    JOB.format(name="cli"),
    JOB.format(name="cli"),
    "aws sagemaker wait training-job-completed-or-stopped --training-job-name cli",
    f"aws sagemaker describe-training-job --training-job-name cli {NAMED}",
    "aws s3 ls s3://local/out/cli/output/ --recursive --summarize",
    "aws logs filter-log-events --log-group-name /aws/sagemaker/TrainingJobs --log-stream-name-prefix cli/"
    " --query 'events[].message' --output text",
    JOB.format(name="cli-long"),
    "aws sagemaker stop-training-job --training-job-name cli-long",
    "aws sagemaker wait training-job-completed-or-stopped --training-job-name cli-long",
    "aws sagemaker list-training-jobs --sort-by Name --sort-order Ascending --query"
    " 'TrainingJobSummaries[].[TrainingJobName,TrainingJobStatus]' --output text",
    *(f"aws s3 cp empty.json s3://local/model/{n} --no-progress" for n in ("config.json", "tokenizer.json")),
    "aws s3 cp empty.json s3://local/model/model.safetensors --no-progress",
    f"aws sagemaker create-model --model-name cli --execution-role-arn {ROLE} --primary-container"
    f" 'Image={IMAGE},ModelDataSource={SOURCE}'",
    "aws sagemaker create-endpoint-config --endpoint-config-name cli --production-variants"
    " VariantName=AllTraffic,ModelName=cli,InstanceType=ml.inf2.xlarge,InitialInstanceCount=1",
    "aws sagemaker create-endpoint --endpoint-name cli --endpoint-config-name cli --tags Key=run,Value=cli",
    "aws sagemaker wait endpoint-in-service --endpoint-name cli",
    "aws sagemaker describe-endpoint --endpoint-name cli --query [EndpointStatus,EndpointConfigName] --output text",
    "aws sagemaker-runtime invoke-endpoint --endpoint-name cli --body 'eyJkbyI6ICJzdGF0dXMiLCAic3RhdHVzIjogMjAwfQ=='"
    " --content-type application/json answer.json",
    "cat answer.json",
    "aws sagemaker-runtime invoke-endpoint --endpoint-name none --body e30= answer.json",
    "aws resourcegroupstaggingapi get-resources --tag-filters Key=run,Values=cli --query"
    " 'ResourceTagMappingList[].ResourceARN' --output text",
    "aws sagemaker create-transform-job --transform-job-name x --model-name cli --transform-input"
    " DataSource={S3DataSource={S3DataType=S3Prefix,S3Uri=s3://x}} --transform-output S3OutputPath=s3://x"
    " --transform-resources InstanceType=ml.m5.large,InstanceCount=1",
    "python boto3_stream.py cli",
    "aws sagemaker delete-endpoint --endpoint-name cli",
    "aws sagemaker wait endpoint-deleted --endpoint-name cli",
    "aws sagemaker delete-endpoint-config --endpoint-config-name cli",
    "aws sagemaker delete-model --model-name cli",
    "aws sagemaker delete-training-job --training-job-name cli",
    "aws sagemaker describe-training-job --training-job-name cli",
    "python boto3_waiters.py",
    "python core_resources.py",
]


def job(name: str, code: str) -> dict[str, object]:
    """A CreateTrainingJob request."""
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-c", code],
        },
        "OutputDataConfig": {"S3OutputPath": "s3://local/out"},
        "ResourceConfig": {"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }


def record() -> str:
    """The page, from a server of its own."""
    folder = Path(tempfile.mkdtemp(prefix="aws-session-"))
    try:
        server = start(folder / "state")
        try:
            work = folder / "work"
            work.mkdir()
            (work / "data.txt").write_text("hello\n")
            (work / "empty.json").write_text("{}")
            for name, code in (("cli", GOOD), ("cli-long", LONG)):
                (work / f"{name}.json").write_text(json.dumps(job(name, code), indent=2))
            for script in SCRIPTS.glob("*.py"):
                shutil.copy(script, work)
            env = {"PATH": f"{ROOT / '.venv-aws' / 'bin'}:/usr/bin:/bin", "HOME": str(folder), **server.environment()}
            env |= {"COLUMNS": "100", "AWS_PAGER": "", "PYTHONWARNINGS": "ignore", "LANG": "C.UTF-8"}
            parts = [HEAD]
            for command in COMMANDS:
                parts.append(_shown(command, work, env))
            return "\n".join(parts)
        finally:
            control.down(folder / "state")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shown(command: str, work: Path, env: dict[str, str]) -> str:
    if " wait " in command:
        time.sleep(2)  # the CLI's waiters look again after 30 or 120 seconds only
    done = subprocess.run(
        command, shell=True, cwd=work, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    text = mask((done.stdout + done.stderr).strip())
    return f"```text\n$ {command}\n{text}{chr(10) if text else ''}[exit code {done.returncode}]\n```\n"


def mask(text: str) -> str:
    """Times, ports and ids replaced by their names."""
    for pattern, name in (
        (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+\d\d:\d\d|Z)?", "TIME"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
        (r"-\d{13}\b", "-EPOCH"),
        (r"Total Size: \d+|^TIME +\d+ ", "SIZE "),
    ):
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.splitlines())


if __name__ == "__main__":
    PAGE.write_text(record())
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} written\n")
