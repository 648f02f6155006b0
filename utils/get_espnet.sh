#!/usr/bin/env bash
# Prints the root of an ESPnet source tree that has egs2/TEMPLATE: $ESPNET_ROOT if it is set, else tools/espnet, which is
# unpacked from the source distribution in requirements.txt, if its checksum is there too. The distribution is kept beside
# the environment if that can be written, so that other clones need not fetch it. Progress goes to stderr.
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
version=$(sed -n 's/^espnet==\([^ ]*\).*/\1/p' "${root}/requirements.txt")
espnet=${root}/tools/espnet
up_to_date() { [ "$(cat "${espnet}/VERSION" 2> /dev/null || true)" = "${version}" ]; }
if up_to_date; then
    echo "${espnet}"
    exit 0
fi

# Whether a file has one of the checksums of espnet in requirements.txt
is_pinned() {
    local sum
    [ -f "$1" ] || return 1
    read -r sum _ < <(sha256sum "$1")
    sed -n '/^espnet==/,/[^\\]$/p' "${root}/requirements.txt" | grep -q "sha256:${sum}"
}

. "${root}/utils/env_home.sh"
archive=${env_home}/espnet-${version}.tar.gz
if ! mkdir -p "${root}/tools" 2> /dev/null || [ ! -w "${root}/tools" ]; then
    echo "error: ${root}/tools: cannot be written; clone the repository where you may write, or set ESPNET_ROOT" >&2
    exit 2
fi
exec 9< "${root}/tools" # one at a time
flock 9
if ! up_to_date; then
    beside=$(mktemp -d "${root}/tools/espnet.XXXXXX")
    trap 'rm -rf "${beside}"' EXIT
    if ! is_pinned "${archive}"; then
        echo "fetching ESPnet ${version}'s scripts (36 MB)" >&2
        python=$("${root}/utils/make_env.sh")
        fetched=${beside}/espnet-${version}.tar.gz
        "${python}" "${root}/utils/fetch_espnet.py" "${fetched}" 9<&- || exit 2
        cp "${fetched}" "${archive}.$$" 2> /dev/null && mv -f "${archive}.$$" "${archive}" || archive=${fetched}
    fi
    if ! tar --extract --gzip --file "${archive}" --directory "${beside}" --strip-components 1 \
        "espnet-${version}/egs2/TEMPLATE" "espnet-${version}/egs2/mini_an4"; then
        echo "error: ${archive}: cannot be unpacked; is the disk full?" >&2
        exit 2
    fi
    rm -f "${beside}/espnet-${version}.tar.gz"
    echo "${version}" > "${beside}/VERSION"
    chmod 755 "${beside}"
    rm -rf "${espnet}"
    mv "${beside}" "${espnet}"
fi
echo "${espnet}"
