#!/usr/bin/env bash
# Prints the root of an ESPnet source tree that has egs2/TEMPLATE: $ESPNET_ROOT if it is set, else tools/espnet, which is
# unpacked from the source distribution of the version in requirements.txt. The distribution is cached beside the
# environment, so other clones do not download it again. Progress goes to stderr.
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
up_to_date() { [ "$(cat "${espnet}/VERSION" 2> /dev/null || true)" = "${version}" ]; }
if up_to_date; then
    echo "${espnet}"
    exit 0
fi
home=${DISTILL_ENV_HOME:-${XDG_CACHE_HOME:-${HOME}/.cache}/distillw2v2}
archive=${home}/espnet-${version}.tar.gz
mkdir -p "${home}" "${root}/tools"
exec 9> "${home}/espnet.lock"
flock 9
if ! up_to_date; then
    fetched=$(mktemp -d "${home}/fetch.XXXXXX")
    beside=$(mktemp -d "${root}/tools/espnet.XXXXXX")
    trap 'rm -rf "${fetched}" "${beside}"' EXIT
    if [ ! -f "${archive}" ]; then
        echo "fetching ESPnet ${version}'s scripts (36 MB)" >&2
        python=$("${root}/utils/make_env.sh")
        if ! "${python}" -m pip download --no-deps --no-binary :all: --dest "${fetched}" "espnet==${version}" \
            > "${home}/espnet.log" 2>&1 9>&-; then
            tail -n 1 "${home}/espnet.log" >&2
            echo "error: espnet==${version}: its source distribution could not be fetched; set ESPNET_ROOT to a checkout" >&2
            exit 2
        fi
        mv "${fetched}/espnet-${version}.tar.gz" "${archive}"
    fi
    if ! tar --extract --gzip --file "${archive}" --directory "${beside}" --strip-components 1 \
        "espnet-${version}/egs2/TEMPLATE" "espnet-${version}/egs2/mini_an4"; then
        echo "error: ${archive}: cannot be unpacked; remove it, and it is fetched again" >&2
        exit 2
    fi
    echo "${version}" > "${beside}/VERSION"
    chmod 755 "${beside}"
    rm -rf "${espnet}"
    mv "${beside}" "${espnet}"
fi
echo "${espnet}"
