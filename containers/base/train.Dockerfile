# CPU stand-in for huggingface-pytorch-training-neuronx: the same paths, launcher, environment and Python-level pins.
# Every deliberate difference is in containers/README.md. Written from the public Dockerfiles of
# aws-neuron/deep-learning-containers (pytorch/training/2.1.2) and aws/deep-learning-containers (huggingface/pytorch).
ARG DEBIAN_IMAGE
FROM ${DEBIAN_IMAGE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Debian's versions are those of the day: a stand-in is rebuilt, never published.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
 && apt-get -qq -o Acquire::Check-Date=false update \
 && apt-get -qq install -y --no-install-recommends ca-certificates curl jq libgomp1 python3 python3-pip >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/log/* \
 && ln -s /usr/bin/python3 /usr/local/bin/python3 && ln -s /usr/bin/python3 /usr/local/bin/python \
 && mkdir -p /opt/ml/input /opt/ml/model /opt/ml/output

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONIOENCODING=UTF-8 \
    LANG=C.UTF-8 \
    LC_ALL=C.UTF-8 \
    LD_LIBRARY_PATH=/opt/aws/neuron/lib:/opt/amazon/efa/lib:/opt/amazon/efa/lib64:/opt/amazon/openmpi/lib64:/usr/local/lib \
    PATH=/opt/aws/neuron/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SAGEMAKER_TRAINING_MODULE=sagemaker_pytorch_container.training:main \
    DGLBACKEND=pytorch

# Certificates and mirror come as secrets, so that none stays in a layer; pip's downloads stay in a cache mount.
RUN --mount=type=bind,source=locks,target=/locks --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,source=containers/base/install.sh,target=/install.sh \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_index_url \
    /install.sh train

COPY --chmod=755 containers/base/start_with_right_hostname.sh /usr/local/bin/
LABEL dlc_major_version="2"
ENTRYPOINT ["bash", "-m", "start_with_right_hostname.sh"]
CMD ["/bin/bash"]
