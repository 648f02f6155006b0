#!/usr/bin/env bash
# Prints the root of an ESPnet source tree with egs2/TEMPLATE: $ESPNET_ROOT if set, else tools/espnet, unpacked from the
# source distribution of the version that requirements.txt pins.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "${ESPNET_ROOT:-}" ]; then
    if [ ! -f "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/asr.sh" ]; then
        echo "error: ESPNET_ROOT=${ESPNET_ROOT}: has no egs2/TEMPLATE/asr1/asr.sh; unset it or name an ESPnet checkout" >&2
        exit 2
    fi
    echo "${ESPNET_ROOT}"
    exit 0
fi
version=$(sed -n 's/^espnet==//p' "${root}/requirements.txt")
espnet=${root}/tools/espnet
if [ "$(cat "${espnet}/VERSION" 2> /dev/null || true)" != "${version}" ]; then
    home=${DISTILL_ENV_HOME:-${XDG_CACHE_HOME:-${HOME}/.cache}/distillw2v2}
    archive=${home}/espnet-${version}.tar.gz
    beside=$(mktemp -d "${root}/tools.XXXXXX")
    trap 'rm -rf "${beside}"' EXIT
    if [ ! -f "${archive}" ]; then
        echo "fetching ESPnet ${version}'s scripts (36 MB)" >&2
        python=$("${root}/utils/make_env.sh")
        "${python}" -m pip download --quiet --no-deps --no-binary :all: --dest "${beside}/sdist" "espnet==${version}" >&2 || {
            echo "error: espnet==${version}: its source distribution could not be fetched; set ESPNET_ROOT to a checkout" >&2
            exit 2
        }
        mkdir -p "${home}"
        mv "${beside}/sdist/espnet-${version}.tar.gz" "${archive}"
    fi
    tar --extract --gzip --file "${archive}" --directory "${beside}" --strip-components 1 \
        "espnet-${version}/egs2/TEMPLATE" "espnet-${version}/egs2/mini_an4"
    rm -rf "${beside}/sdist"
    echo "${version}" > "${beside}/VERSION"
    mkdir -p "${root}/tools"
    rm -rf "${espnet}"
    mv "${beside}" "${espnet}"
    chmod 755 "${espnet}"
fi
echo "${espnet}"
