#!/usr/bin/env bash
# Makes data/{train,valid,test,test_isolated,test_unseen} from FSDD's recordings; options as of distill.bin.prepare_fsdd.
set -euo pipefail

options=()
fsdd_dir=
while [ $# -gt 0 ]; do
    case "$1" in
        --fsdd_dir) fsdd_dir=$2; shift 2 ;;
        *) options+=("$1"); shift ;;
    esac
done
if [ -z "${fsdd_dir}" ]; then
    beside=$(cd "${DISTILL_ROOT}/.." && pwd)/shared/corpora/fsdd
    if [ -d "${beside}" ]; then
        fsdd_dir=${beside}
    else
        fsdd_dir=downloads/fsdd
        url=https://github.com/Jakobovski/free-spoken-digit-dataset.git
        if [ ! -d "${fsdd_dir}/recordings" ]; then
            rm -rf downloads/fsdd.part
            git clone --quiet --depth 1 "${url}" downloads/fsdd.part || {
                echo "error: local/data.sh: ${url} cannot be reached; give a copy of it with" \
                    "--local_data_opts \"--fsdd_dir DIR\"" >&2
                exit 2
            }
            mv downloads/fsdd.part "${fsdd_dir}"
        fi
    fi
fi
python3 -m distill.bin.prepare_fsdd --fsdd_dir "${fsdd_dir}" "${options[@]}"
