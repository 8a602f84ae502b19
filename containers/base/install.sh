#!/bin/bash
# Installs locks/<role>.txt and torch into the stand-in's system Python, as the DLC has them in its own.
set -euo pipefail
role=$1
[ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
[ ! -s /run/secrets/pip_index_url ] || PIP_INDEX_URL=$(cat /run/secrets/pip_index_url) && export PIP_INDEX_URL
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
python3 -m pip install -q --no-deps --require-hashes -r "/locks/$role.txt"
if compgen -G '/wheels/torch-*+cpu-*.whl' >/dev/null; then
  python3 -m pip install -q --no-deps --no-index --find-links /wheels --require-hashes -r /locks/torch-cpu.txt
else
  python3 -m pip install -q --no-deps --require-hashes -r /locks/torch-pypi.txt
fi
