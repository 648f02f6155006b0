#!/usr/bin/env bash
# Makes data/train, data/valid and data/test, each with wav.scp, text and utt2spk in Kaldi's form.
# As it stands it takes directories that are in that form already:
#   ./run.sh --local_data_opts "--train /corpus/train --valid /corpus/dev --test /corpus/test"
set -euo pipefail

# shellcheck disable=SC2034  # read through ${!set}
train='' valid='' test=''
. utils/parse_options.sh

for set in train valid test; do
    from=${!set}
    if [ -z "${from}" ]; then
        echo "error: local/data.sh: --${set} is missing; give --local_data_opts \"--train DIR --valid DIR --test DIR\"," \
            "or edit local/data.sh" >&2
        exit 2
    fi
    # shellcheck disable=SC2086  # --resample and --allow_pipes as given to run.sh
    python3 -m distill.bin.check_data --data "${from}" ${CHECK_DATA_OPTIONS:-}
    mkdir -p "data/${set}"
    for file in wav.scp text utt2spk segments; do
        if [ -f "${from}/${file}" ]; then cp "${from}/${file}" "data/${set}/"; fi
    done
    utils/fix_data_dir.sh "data/${set}"
done
