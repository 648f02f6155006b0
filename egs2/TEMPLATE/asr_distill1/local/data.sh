#!/usr/bin/env bash
# Makes data/train, data/valid and the test sets, each with wav.scp, text and utt2spk in Kaldi's form.
# As it stands it takes directories that are in that form already, and repairs what has only one reading:
#   ./run.sh --local_data_opts "--train /corpus/train --valid /corpus/dev --test test=/corpus/test"
# python -m distill.bin.import_data --help lists the options. Without --valid some speakers of train are kept apart.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "error: local/data.sh: --train is missing; give --local_data_opts \"--train DIR --valid DIR --test test=DIR\"," \
        "or edit local/data.sh" >&2
    exit 2
fi
# shellcheck disable=SC2086  # --resample and --allow_pipes as given to run.sh
python3 -m distill.bin.import_data "$@" ${CHECK_DATA_OPTIONS:-}
