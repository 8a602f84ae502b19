# Owner of the images' facts: base images, pins, tags, labels, platform. harness/stacks.json is generated from
# `docker buildx bake --print`. A further stack is one more row of STACKS.
#
#   harness build             both images of the default stack on the AWS Deep Learning Containers
#   harness build --stand-in  the same Dockerfiles on CPU stand-ins for them (containers/base)

# Where AWS keeps the Deep Learning Containers; other regions may have another account (docs/images.md).
variable "DLC_ACCOUNT" { default = "763104351884" }
variable "DLC_REGION" { default = "us-west-2" }
# Prefix of our images' names, with the slash: ACCOUNT.dkr.ecr.REGION.amazonaws.com/
variable "REGISTRY" { default = "" }
# The commit, or a hash of what is copied into the images where the tree differs from it.
variable "REVISION" { default = "local" }
# The stand-ins' root: made by containers/base/debian.sh; debian:bookworm-slim does as well.
variable "DEBIAN_IMAGE" { default = "neuron-harness/debian:bookworm" }
# A directory with the CPU wheel of torch. One without it, as this default, gives PyPI's build, with CUDA: 7 GB.
variable "WHEELS" { default = "locks" }
variable "DJL_JARS" { default = ".cache/djl/0.34.0" }
# A company's certificates and a mirror, for the build only: nothing of them stays in an image.
variable "CA_BUNDLE" { default = "" }
variable "PIP_INDEX_URL" { default = "" }

variable "STACKS" {
  default = [
    {
      name       = "sdk2.20"
      train      = "huggingface-pytorch-training-neuronx:2.1.2-transformers4.48.1-neuronx-py310-sdk2.20.0-ubuntu20.04"
      serve      = "djl-inference:0.30.0-neuronx-sdk2.20.1"
      train_pins = "optimum-neuron==0.0.28 transformers==4.48.1 accelerate==0.29.2 datasets==2.18.0 peft==0.14.0"
      serve_pins = "transformers-neuronx==0.12.313 transformers==4.45.2"
    },
  ]
}

target "_common" {
  platforms = ["linux/amd64"]
  # SageMaker refuses an image index, which is what an attestation makes of an image.
  attest = ["type=provenance,disabled=true", "type=sbom,disabled=true"]
  secret = concat(
    CA_BUNDLE != "" ? ["id=ca,src=${CA_BUNDLE}"] : [],
    PIP_INDEX_URL != "" ? ["id=pip_index_url,env=PIP_INDEX_URL"] : [],
  )
}

target "_image" {
  inherits = ["_common"]
  labels = {
    "org.opencontainers.image.revision" = REVISION
    "org.opencontainers.image.licenses" = "Apache-2.0"
  }
}

target "dlc" {
  inherits   = ["_image"]
  name       = "${role}-${replace(stack.name, ".", "-")}"
  matrix     = { role = ["train", "serve"], stack = STACKS }
  dockerfile = "containers/${role}/Dockerfile"
  args = {
    BASE_IMAGE = "${DLC_ACCOUNT}.dkr.ecr.${DLC_REGION}.amazonaws.com/${stack[role]}"
    PINS       = stack["${role}_pins"]
  }
  tags = ["${REGISTRY}neuron-${role}:${stack.name}-${REVISION}"]
  labels = {
    "org.opencontainers.image.title"     = "neuron-${role}"
    "org.opencontainers.image.base.name" = stack[role]
    "neuron-harness.stack"               = stack.name
    "neuron-harness.role"                = role
    "neuron-harness.pins"                = stack["${role}_pins"]
  }
}

# The same on the stand-ins. The Neuron packages are not in them, so their pins are not checked.
target "cpu" {
  inherits   = ["_image"]
  name       = "${role}-${replace(stack.name, ".", "-")}-cpu"
  matrix     = { role = ["train", "serve"], stack = STACKS }
  dockerfile = "containers/${role}/Dockerfile"
  contexts   = { stand-in = "target:base-${role}" }
  args = {
    BASE_IMAGE = "stand-in"
    PINS       = regex_replace(stack["${role}_pins"], "transformers-neuronx==[^ ]+ ?", "")
  }
  tags = ["${REGISTRY}neuron-${role}:${stack.name}-cpu-${REVISION}"]
  labels = {
    "org.opencontainers.image.title"     = "neuron-${role}"
    "org.opencontainers.image.base.name" = "stand-in for ${stack[role]}"
    "neuron-harness.stack"               = stack.name
    "neuron-harness.role"                = role
    "neuron-harness.pins"                = stack["${role}_pins"]
    "neuron-harness.stand-in"            = "true"
  }
}

target "base" {
  inherits   = ["_common"]
  name       = "base-${role}"
  matrix     = { role = ["train", "serve"] }
  dockerfile = "containers/base/${role}.Dockerfile"
  args       = { DEBIAN_IMAGE = DEBIAN_IMAGE }
  tags       = ["neuron-harness/base-${role}:local"]
  contexts   = { wheels = WHEELS, jars = DJL_JARS }
}
