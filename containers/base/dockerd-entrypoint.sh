#!/bin/bash
# Stand-in for the serving DLC's launcher: the server as a child of this shell, started again after exit code 77.
if [ "$1" = serve ]; then
  shift
  code=77
  while [ "$code" = 77 ]; do
    /usr/bin/djl-serving "$@"
    code=$?
  done
  exit "$code"
fi
set -e
eval "$@"
