#!/usr/bin/env bash
# Makes data/{train,valid,test} by speech synthesis; options as of distill.bin.prepare_synth.
set -euo pipefail

python3 -m distill.bin.prepare_synth "$@"
