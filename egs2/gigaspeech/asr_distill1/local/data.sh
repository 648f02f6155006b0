#!/usr/bin/env bash
# Makes data/{train,valid,dev,test} from GigaSpeech.json; options as of distill.data.gigaspeech.
set -euo pipefail
python3 -m distill.data.gigaspeech "$@"
