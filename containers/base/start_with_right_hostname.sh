#!/bin/bash
# Stand-in for the training DLC's launcher: `train` as a foreground child of this shell, which therefore loses SIGTERM,
# as the original does; anything else through eval. The original also gives `train` a library that answers gethostname()
# from resourceconfig.json.
if [ "$1" = train ]; then
  train
else
  eval "$@"
fi
