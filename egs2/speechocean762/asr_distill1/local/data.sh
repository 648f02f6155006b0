#!/usr/bin/env bash
# Makes data/{train,valid,test}. Options as of distill.bin.prepare_speechocean762; without --corpus the corpus is taken
# from a copy beside the repository or downloaded.
set -euo pipefail

corpus='' options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --corpus) corpus=$2; shift 2 ;;
        *) options+=("$1"); shift ;;
    esac
done
if [ -z "${corpus}" ]; then
    corpus=downloads/speechocean762
    restore=$(cd "${DISTILL_ROOT}/.." && pwd)/shared/corpora/restore.py
    if [ ! -d "${corpus}" ]; then
        rm -rf "${corpus}.part"
        mkdir -p "${corpus}.part"
        if [ -f "${restore}" ]; then
            python3 "${restore}" speechocean762 "${corpus}.part/speechocean762"
        else
            url=https://www.openslr.org/resources/101/speechocean762.tar.gz
            curl --fail --silent --show-error --location "${url}" | tar -xz -C "${corpus}.part" || {
                echo "error: local/data.sh: ${url} cannot be reached; give a copy of the corpus with" \
                    "--local_data_opts \"--corpus DIR\"" >&2
                exit 2
            }
        fi
        mv "${corpus}.part/speechocean762" "${corpus}"
        rm -rf "${corpus}.part"
    fi
fi
python3 -m distill.bin.prepare_speechocean762 --corpus "${corpus}" "${options[@]}"
