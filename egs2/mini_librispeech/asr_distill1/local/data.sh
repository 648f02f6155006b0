#!/usr/bin/env bash
# Makes data/{train,valid,test}. Options as of distill.bin.prepare_mini_librispeech; without --corpus the corpus is taken
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
    corpus=downloads/LibriSpeech
    restore=$(cd "${DISTILL_ROOT}/.." && pwd)/shared/corpora/restore.py
    if [ -f "${restore}" ]; then
        if [ ! -d "${corpus}" ]; then
            rm -rf "${corpus}.part"
            python3 "${restore}" librispeech "${corpus}.part"
            mv "${corpus}.part" "${corpus}"
        fi
        [ ${#options[@]} -gt 0 ] || options=(--cut conf/speakers.txt)
    else
        for part in train-clean-5 dev-clean-2; do
            [ ! -d "${corpus}/${part}" ] || continue
            url=https://www.openslr.org/resources/31/${part}.tar.gz
            rm -rf "downloads/${part}.part"
            mkdir -p "downloads/${part}.part" "${corpus}"
            curl --fail --silent --show-error --location "${url}" | tar -xz -C "downloads/${part}.part" || {
                echo "error: local/data.sh: ${url} cannot be reached; give a copy of the corpus with" \
                    "--local_data_opts \"--corpus DIR\"" >&2
                exit 2
            }
            mv "downloads/${part}.part/LibriSpeech/${part}" "${corpus}/${part}"
            rm -rf "downloads/${part}.part"
        done
    fi
fi
python3 -m distill.bin.prepare_mini_librispeech --corpus "${corpus}" "${options[@]}"
