# CPU stand-in for djl-inference-neuronx: the same paths, launcher, environment and Python-level pins, and DJL's own
# Python engine. Every deliberate difference is in containers/README.md. Written from the public Dockerfile of
# deepjavalibrary/djl-serving (serving/docker/pytorch-inf2.Dockerfile, 0.30.0).
ARG DEBIAN_IMAGE
# hadolint ignore=DL3006
FROM ${DEBIAN_IMAGE} AS system
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Debian's versions are those of the day: a stand-in is rebuilt, never published.
# The JRE's package wants a directory that a slim image lacks.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean && mkdir -p /usr/share/man/man1 \
 && apt-get -qq -o Acquire::Check-Date=false update \
 && apt-get -qq install -y --no-install-recommends \
      ca-certificates curl libgomp1 openjdk-17-jre-headless python3 python3-pip >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/log/* \
 && mkdir -p /opt/ml/model /opt/djl/conf /opt/djl/deps
ENV JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64

# The front of docs/decisions/003, compiled here by the compiler that is among the locked jars.
FROM system AS front
RUN --mount=type=bind,source=containers/base/djl,target=/source --mount=type=bind,from=jars,target=/jars \
    mkdir -p /opt/djl/lib && cp /jars/*.jar /opt/djl/lib/ && mv /opt/djl/lib/ecj-*.jar /tmp/ecj.jar \
 && java -jar /tmp/ecj.jar -source 17 -target 17 -proc:none -failOnWarning -encoding UTF-8 -d /opt/djl/classes \
      -cp "$(printf '%s:' /opt/djl/lib/*.jar)" /source/*.java

FROM system
ENV MODEL_SERVER_HOME=/opt/djl \
    DJL_CACHE_DIR=/tmp/.djl.ai \
    HF_HOME=/tmp/.cache/huggingface \
    PYTORCH_KERNEL_CACHE_PATH=/tmp/.cache \
    MODEL_LOADING_TIMEOUT=1200 \
    PREDICT_TIMEOUT=240 \
    PYTORCH_PRECXX11=true \
    PYTHONDONTWRITEBYTECODE=1 \
    JAVA_OPTS="-Xmx1g -Xms1g -Xss2m -XX:+ExitOnOutOfMemoryError" \
    NEURON_CC_FLAGS="--logfile /tmp/compile.log --temp-dir=/tmp" \
    PATH=/opt/aws/neuron/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Certificates and mirror come as secrets, so that none stays in a layer; pip's downloads stay in a cache mount.
RUN --mount=type=bind,source=locks,target=/locks --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,source=containers/base/install.sh,target=/install.sh \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_index_url \
    /install.sh serve

COPY --from=front /opt/djl/lib /opt/djl/lib
COPY --from=front /opt/djl/classes /opt/djl/classes
COPY --chmod=755 containers/base/djl-serving.sh /usr/bin/djl-serving
COPY --chmod=755 containers/base/dockerd-entrypoint.sh /usr/local/bin/

EXPOSE 8080
WORKDIR /opt/djl
LABEL dlc_major_version="1" \
      com.amazonaws.ml.engines.sagemaker.dlc.framework.djl.inf2="true" \
      com.amazonaws.sagemaker.capabilities.multi-models="true" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port="true"
ENTRYPOINT ["/usr/local/bin/dockerd-entrypoint.sh"]
CMD ["serve"]
