#!/usr/bin/env bash
# Makes data/{train,valid,test} by speech synthesis; options as of distill.data.synth.
set -euo pipefail

python3 -m distill.data.synth "$@"
