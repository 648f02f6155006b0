#!/usr/bin/env bash
# Makes data/{train,valid,dev,test} from GigaSpeech.json; options as of distill.bin.prepare_gigaspeech.
set -euo pipefail
python3 -m distill.bin.prepare_gigaspeech "$@"
