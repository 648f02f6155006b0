#!/usr/bin/env bash
# Makes data/{train,valid,dev_clean,dev_other,test_clean,test_other}; options as of distill.bin.prepare_librispeech.
set -euo pipefail
python3 -m distill.bin.prepare_librispeech "$@"
