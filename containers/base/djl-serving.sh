#!/bin/sh
# DJL's Python engine behind the product's HTTP front: docs/decisions/003-local-http-front.md
[ -n "${NO_OMP_NUM_THREADS:-}" ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# shellcheck disable=SC2086 # JAVA_OPTS is a list of words
exec "$JAVA_HOME/bin/java" ${JAVA_OPTS:-} -cp "/opt/djl/classes:/opt/djl/lib/*" DjlServing "$@"
