"""For every rule one file, as short as it can be, that makes it speak, and the line it has to name."""

from __future__ import annotations

from typing import NamedTuple


class Trigger(NamedTuple):
    rule: str
    name: str
    text: str
    line: int


HF_TRAIN = "763104351884.dkr.ecr.us-west-2.amazonaws.com/huggingface-pytorch-training-neuronx"
AWS_TRAIN = "public.ecr.aws/neuron/pytorch-training-neuronx"
VLLM = "public.ecr.aws/neuron/pytorch-inference-vllm-neuronx"
DJL = "763104351884.dkr.ecr.us-west-2.amazonaws.com/djl-inference"
T48 = f"{HF_TRAIN}:2.1.2-transformers4.48.1-neuronx-py310-sdk2.20.0-ubuntu20.04"
T55 = f"{HF_TRAIN}:2.8.0-transformers4.55.4-neuronx-py310-sdk2.26.0-ubuntu22.04"
SERVE_VLLM = f"FROM {VLLM}:0.16.0-neuronx-py312-sdk2.28.0-ubuntu24.04\n# inf2.8xlarge\n"
PROPERTIES = "engine=Python\noption.n_positions=512\n"
HUB_DEPLOY = 'import sagemaker\nllm = HuggingFaceModel(env={"HF_MODEL_ID": "meta-llama/Llama-2-7b-hf"})\n'

TRIGGERS = [
    # stacks
    Trigger(
        "image-needs-newer-chip",
        "a.yaml",
        f"image: {VLLM}:0.16.0-neuronx-py312-sdk2.31.1-ubuntu24.04\nnodeSelector:\n  type: inf2.8xlarge\n",
        1,
    ),
    Trigger("image-not-published", "Dockerfile", f"FROM {AWS_TRAIN}:2.9.0-neuronx-py312-sdk2.31.0-ubuntu24.04\n", 1),
    Trigger("stack-end-of-support", "Dockerfile", f"FROM {DJL}:0.30.0-neuronx-sdk2.20.1\n", 1),
    Trigger("stack-pair", "launch.py", f'train = "{T55}"\nserve = "{DJL}:0.30.0-neuronx-sdk2.20.1"\n', 2),
    Trigger(
        "artifact-tokenizer-drift", "launch.py", f'train = "{T48}"\nserve = "{DJL}:0.28.0-neuronx-sdk2.18.2"\n', 2
    ),
    Trigger(
        "artifact-chat-template-drift", "launch.py", f'train = "{T55}"\nserve = "{DJL}:0.30.0-neuronx-sdk2.20.1"\n', 2
    ),
    Trigger(
        "architecture-not-served",
        "serving.properties",
        "engine=Python\noption.model_id=Qwen/Qwen2.5-7B\noption.rolling_batch=tnx\n",
        2,
    ),
    Trigger(
        "image-account-and-region",
        "Dockerfile",
        "FROM 763104351884.dkr.ecr.ap-southeast-7.amazonaws.com/djl-inference:0.30.0-neuronx-sdk2.20.1\n",
        1,
    ),
    Trigger(
        "python-of-image",
        "Dockerfile",
        f"FROM {AWS_TRAIN}:2.9.0-neuronx-py312-sdk2.28.0-ubuntu24.04\nRUN pip install optimum-neuron==0.4.5\n",
        2,
    ),
    # parallel
    Trigger(
        "tp-divides-heads",
        "hyperparameters.json",
        '{\n "model_name_or_path": "HuggingFaceTB/SmolLM2-135M",\n "max_steps": "10",\n'
        ' "tensor_parallel_size": "2"\n}\n',
        4,
    ),
    Trigger(
        "kv-heads-repeated",
        "serving.properties",
        "engine=Python\noption.model_id=meta-llama/Llama-3.1-70B\noption.tensor_parallel_degree=12\n",
        3,
    ),
    Trigger(
        "length-beyond-model",
        "serving.properties",
        "option.model_id=TinyLlama/TinyLlama-1.1B-Chat-v1.0\noption.n_positions=4096\n",
        2,
    ),
    Trigger(
        "bucket-beyond-length",
        "serving.properties",
        "option.n_positions=512\noption.context_length_estimate=256,1024\n",
        2,
    ),
    Trigger(
        "visible-cores-range",
        "serve.sh",
        'export NEURON_RT_VISIBLE_CORES="0-3"\n./start --instance inf2.8xlarge\n',
        1,
    ),
    Trigger(
        "replicas-of-small-tp",
        "launch.py",
        'env = {"OPTION_TENSOR_PARALLEL_DEGREE": "2"}\ndeploy(instance_type="ml.inf2.48xlarge")\n',
        1,
    ),
    Trigger(
        "zero1-without-data-parallelism",
        "train.sh",
        "./launch ml.trn1.2xlarge\ntorchrun run.py --tensor_parallel_size 2 --zero_1\n",
        2,
    ),
    # serving
    Trigger("serving-unknown-option", "serving.properties", PROPERTIES + "option.tensor_paralel_degree=2\n", 3),
    Trigger(
        "serving-handler-gone",
        "Dockerfile",
        "FROM deepjavalibrary/djl-serving:0.36.0-pytorch-inf2\n"
        "ENV OPTION_ENTRYPOINT=djl_python.transformers_neuronx\n",
        2,
    ),
    Trigger("serving-rolling-batch-chosen", "serving.properties", PROPERTIES + "option.entryPoint=model.py\n", 3),
    Trigger("serving-engine-mpi", "serving.properties", "engine=MPI\noption.n_positions=512\n", 1),
    Trigger("serving-ready-too-early", "Dockerfile", "FROM x\nENV SERVING_WAIT_MODEL_LOADING=false\n", 2),
    Trigger("serving-predict-timeout", "serving.properties", PROPERTIES + "option.predict_timeout=240\n", 3),
    Trigger("serving-optimize-level", "serving.properties", "option.neuron_optimize_level=5\n", 1),
    Trigger(
        "serving-two-models",
        "launch.py",
        f'image = "{DJL}:0.30.0-neuronx-sdk2.20.1"\nenv = {{"HF_MODEL_ID": "a/b"}}\n'
        'Model(model_data="s3://bucket/model.tar.gz")\n',
        2,
    ),
    Trigger("serving-default-length", "serve.sh", "# Neuron\nvllm serve a/b --tensor-parallel-size 2\n", 2),
    Trigger("vllm-flag-removed", "Dockerfile", SERVE_VLLM + 'CMD ["vllm", "serve", "--device", "neuron"]\n', 3),
    Trigger(
        "vllm-swap-space",
        "Dockerfile",
        f'FROM {VLLM}:0.13.0-neuronx-py312-sdk2.28.0-ubuntu24.04\nENV T=inf2.xlarge\nCMD ["vllm", "serve", "m"]\n',
        2,
    ),
    Trigger(
        "vllm-prefix-caching",
        "serve.sh",
        "# neuron\nINSTANCE=trn1.32xlarge\nvllm serve m --enable-prefix-caching\n",
        3,
    ),
    Trigger(
        "vllm-speculative-decoding",
        "serve.sh",
        "# neuron\nINSTANCE=inf2.48xlarge\nvllm serve m --num-speculative-tokens 3\n",
        3,
    ),
    Trigger(
        "serving-compile-at-start",
        "serving.properties",
        PROPERTIES + "option.entryPoint=djl_python.transformers_neuronx\n",
        3,
    ),
    # environment
    Trigger(
        "env-bf16-removed",
        "Dockerfile",
        f"FROM {AWS_TRAIN}:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04\nENV XLA_USE_BF16=1\n",
        2,
    ),
    Trigger(
        "env-async-removed",
        "Dockerfile",
        f"FROM {VLLM}:0.21.0.1.0.0-neuronx-py313-sdk2.31.0-ubuntu24.04\n"
        "ENV NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS=3\n",
        2,
    ),
    Trigger(
        "env-cache-dir-cut",
        "train.sh",
        'export NEURON_CC_FLAGS="--cache_dir=s3://bucket/cache"\ntorchrun run_clm.py\n',
        1,
    ),
    Trigger("env-cache-shared", "train.sh", "export NEURON_COMPILE_CACHE_URL=/fsx/cache\n", 1),
    Trigger(
        "env-two-core-variables", "serve.sh", "export NEURON_RT_VISIBLE_CORES=0-1\nexport NEURON_RT_NUM_CORES=2\n", 2
    ),
    Trigger("env-remote-cache", "a.yaml", "env:\n- name: VLLM_NEURON_REMOTE_CACHE\n  value: s3://bucket/x\n", 3),
    Trigger(
        "env-cc-flags-lost",
        "Dockerfile",
        'FROM x\nENV NEURON_CC_FLAGS="--model-type=transformer"\nENV NEURON_CC_FLAGS="--cache_dir=/c"\n',
        3,
    ),
    # packages
    Trigger("package-placeholder", "Dockerfile", "FROM python:3.10\nRUN pip install transformers torch-neuronx\n", 2),
    Trigger("package-placeholder-possible", "requirements.txt", "numpy\nneuronx-distributed==0.9.0\n", 2),
    Trigger(
        "sagemaker-sdk-3",
        "setup.ipynb",
        '{\n "cells": [\n  {\n   "cell_type": "code",\n   "source": [\n    "!pip install -U sagemaker\\n",\n'
        '    "from sagemaker.huggingface import HuggingFaceModel\\n"\n   ]\n  }\n ]\n}\n',
        6,
    ),
    Trigger("optimum-extra", "requirements.txt", "optimum[neuron]\n", 1),
    Trigger("numpy-for-pyarrow", "requirements.txt", "numpy==1.26.4\npyarrow==26.0.0\n", 2),
    Trigger("datasets-for-pyarrow", "requirements.txt", "datasets==2.14.7\npyarrow==25.0.0\n", 1),
    Trigger("hub-for-datasets", "requirements.txt", "transformers==4.57.1\ndatasets==5.2.0\n", 2),
    Trigger("training-toolkit-protobuf", "Dockerfile", f"FROM {T48}\nRUN pip install sagemaker-training==5.1.4\n", 2),
    Trigger(
        "argument-renamed",
        "finetune.ipynb",
        '{\n "cells": [\n  {\n   "cell_type": "code",\n   "source": [\n    "!pip install trl==0.24.0\\n",\n'
        '    "NeuronSFTConfig(max_seq_length=1024)\\n"\n   ]\n  }\n ]\n}\n',
        7,
    ),
    Trigger("package-unpinned-in-image", "Dockerfile", f"FROM {T48}\nRUN pip install peft\n", 2),
    Trigger("transformers-replaced-in-image", "Dockerfile", f"FROM {T48}\nRUN pip install transformers==4.57.1\n", 2),
    # sagemaker
    Trigger("instance-name", "launch.py", 'T = "ml.inf2.4xlarge"\n', 1),
    Trigger(
        "instance-cannot-train",
        "launch.py",
        'import sagemaker\nPyTorch(entry_point="a.py", instance_type="ml.inf2.xlarge")\n',
        2,
    ),
    Trigger("startup-timeout-range", "launch.py", "deploy(container_startup_health_check_timeout=7200)\n", 1),
    Trigger("startup-timeout-missing", "launch.py", HUB_DEPLOY + 'llm.deploy(instance_type="ml.inf2.xlarge")\n', 3),
    Trigger("inference-ami", "launch.py", HUB_DEPLOY + 'llm.deploy(instance_type="ml.inf2.xlarge")\n', 3),
    Trigger(
        "inference-ami-unknown",
        "variant.json",
        '{\n "InstanceType": "ml.inf2.xlarge",\n "InferenceAmiVersion": "al2-ami-sagemaker-inference-gpu-2"\n}\n',
        3,
    ),
    Trigger("max-runtime-range", "launch.py", "import sagemaker\nPyTorch(max_run=40 * 86400)\n", 2),
    Trigger("spot-wait-shorter-than-run", "launch.py", "PyTorch(max_run=7200, max_wait=3600)\n", 1),
    Trigger("spot-without-checkpoints", "launch.py", "PyTorch(use_spot_instances=True, max_wait=10)\n", 1),
    Trigger(
        "network-isolation-and-hub",
        "launch.py",
        'Model(enable_network_isolation=True,\n      env={"HF_MODEL_ID": "meta-llama/Llama-2-7b-hf"})\n',
        1,
    ),
    Trigger("secret-readable", "launch.py", 'env = {"HF_TOKEN": "hf_' + "AbCdEfGhIj" * 3 + 'KLMN"}\n', 1),
    Trigger("endpoint-without-end", "launch.py", HUB_DEPLOY + 'llm.deploy(instance_type="ml.inf2.xlarge")\n', 3),
    Trigger("hyperparameter-through-shell", "hyperparameters.json", '{\n "prompt": "a b $HOME"\n}\n', 2),
    Trigger(
        "distribution-for-trainium",
        "launch.py",
        'PyTorch(instance_type="ml.trn1.32xlarge",\n        distribution={"smdistributed": {}})\n',
        2,
    ),
    Trigger("quota-of-new-accounts", "launch.py", 'PyTorch(instance_type="ml.trn1.32xlarge")\n', 1),
    Trigger("update-endpoint-variant", "launch.py", "predictor.update_endpoint(model_name='x')\n", 1),
    # hosts
    Trigger(
        "driver-too-new",
        "setup.sh",
        f"apt-get install -y aws-neuronx-dkms=2.31.7.0\ndocker run --device=/dev/neuron0 {T48} x\n",
        1,
    ),
    Trigger(
        "driver-too-old",
        "setup.sh",
        "apt-get install aws-neuronx-dkms=2.20.28.0 aws-neuronx-runtime-lib=2.33.10.0\n",
        1,
    ),
    Trigger("driver-in-image", "Dockerfile", "FROM ubuntu:22.04\nRUN apt-get install -y aws-neuronx-dkms\n", 2),
    Trigger(
        "host-memory-compile",
        "launch.py",
        'env = {"HF_MODEL_ID": "meta-llama/Llama-2-7b-hf"}\nT = "ml.inf2.xlarge"\n',
        2,
    ),
    Trigger("efa-instances", "launch.py", 'PyTorch(instance_type="ml.trn1.2xlarge",\n        instance_count=4)\n', 2),
    Trigger("efa-variables", "train.sh", "# neuron\ntorchrun --nnodes 4 run.py\n", 2),
    Trigger("device-not-there", "serve.sh", "# x\nTYPE=inf2.8xlarge\ndocker run --device=/dev/neuron1 image\n", 3),
    Trigger("device-missing", "serve.sh", f"docker run -p 8080:8080 {DJL}:0.30.0-neuronx-sdk2.20.1\n", 1),
    Trigger("region-without-instance", "launch.py", 'region = "eu-west-1"\nT = "ml.trn1.32xlarge"\n', 1),
    Trigger(
        "capacity-in-some-zones",
        "launch.py",
        'region = "us-east-2"\nPyTorch(instance_type="ml.trn1.32xlarge", subnets="subnet-1")\n',
        2,
    ),
    Trigger("nccl-in-neuron-image", "Dockerfile", f"FROM {T48}\nRUN pip install bitsandbytes\n", 2),
    # training
    Trigger(
        "evaluation-not-supported",
        "train.sh",
        "pip install optimum-neuron==0.4.5\ntorchrun run.py --max_steps 10 --do_eval\n",
        2,
    ),
    Trigger(
        "resume-not-supported",
        "train.sh",
        "pip install optimum-neuron==0.4.5\ntorchrun run.py --resume_from_checkpoint /opt/ml/checkpoints\n",
        2,
    ),
    Trigger("optimizer-fused", "train.sh", "# neuron\ntorchrun run.py --optim adamw_torch_fused\n", 2),
    Trigger("shards-not-consolidated", "train.sh", "torchrun run_clm.py --max_steps 9 --tensor_parallel_size 8\n", 1),
    Trigger("shapes-vary", "train.sh", "# neuron\ntorchrun run.py --max_steps 9 --group_by_length true\n", 2),
    Trigger("last-batch-kept", "train.sh", "# neuron\ntorchrun run.py --dataloader_drop_last false\n", 2),
    Trigger(
        "sequence-not-divisible",
        "train.sh",
        "torchrun run_clm.py --max_steps 9 --block_size 150 --tensor_parallel_size 8\n",
        1,
    ),
    Trigger(
        "precompile-differs",
        "train.sh",
        "neuron_parallel_compile torchrun x.py --block_size 128\ntorchrun x.py --block_size 256\n",
        2,
    ),
    Trigger(
        "precompile-with-evaluation-metrics",
        "launch.py",
        'PyTorch(environment={"RUN_NEURON_PARALLEL_COMPILE": "1"})\n',
        1,
    ),
    Trigger("neff-generation", "compile.sh", "TYPE=trn2.48xlarge\nneuronx-cc compile x --target trn1\n", 2),
    Trigger("tp-more-than-cores", "serve.sh", "TYPE=inf2.48xlarge\nvllm serve m --tensor-parallel-size 32\n", 2),
    Trigger("tp-degree-unusual", "serve.sh", "TYPE=inf2.24xlarge\nserve --tensor-parallel-degree 6\n", 2),
    Trigger(
        "serving-two-workers",
        "launch.py",
        'deploy(instance_type="ml.inf2.xlarge", minWorkers=2,\n       tensor_parallel_degree=2)\n',
        1,
    ),
]
