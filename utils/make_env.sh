#!/usr/bin/env bash
# Prints the interpreter of the project's environment, and builds the environment first if it is not there.
# It lives in $DISTILL_ENV_HOME (default ~/.cache/distillw2v2), named after requirements.txt's checksum, so that every
# clone with the same requirements shares it and a changed one gets its own. Progress goes to stderr.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=${DISTILL_ENV_HOME:-${XDG_CACHE_HOME:-${HOME}/.cache}/distillw2v2}

say() { echo "$*" >&2; }

find_python() {
    local candidate
    for candidate in python3.12 python3.13 "${PYENV_ROOT:-${HOME}/.pyenv}"/versions/3.1[23]*/bin/python; do
        if "${candidate}" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 13)))' \
            2> /dev/null; then
            command -v "${candidate}"
            return
        fi
    done
    if command -v uv > /dev/null; then
        uv python find '>=3.12,<3.14' 2> /dev/null && return
    fi
    return 1
}

hash=$(sha256sum "${root}/requirements.txt" | cut -c1-12)
env=${home}/env-${hash}
if [ -f "${env}/.complete" ]; then
    echo "${env}/bin/python"
    exit 0
fi
python=$(find_python) || {
    say "error: no Python 3.12 or 3.13 found; install one (apt install python3.12-venv, pyenv install 3.12, uv python install 3.12)"
    exit 2
}
mkdir -p "${home}"
exec 9> "${env}.lock"
if ! flock -n 9; then
    say "waiting for another build of ${env}"
    flock 9
fi
if [ ! -f "${env}/.complete" ]; then
    say "building the environment in ${env} with ${python} (about 7 GB, some minutes; once)"
    rm -rf "${env}"
    "${python}" -m venv "${env}" >&2
    if ! "${env}/bin/python" -m pip install --progress-bar off --requirement "${root}/requirements.txt" \
        2> "${env}.log" | awk '/^(Collecting|Installing)/ { printf "\r%-70.70s", $0; fflush() } END { print "" }' >&2; then
        tail -n 3 "${env}.log" >&2
        say "error: ${env}: pip could not install requirements.txt; the whole message is in ${env}.log"
        exit 2
    fi
    touch "${env}/.complete"
    command -v sclite > /dev/null || [ -x /usr/lib/sctk/bin/sclite ] ||
        say "note: sclite is not installed (Debian: apt install sctk); scores come from jiwer until it is"
fi
echo "${env}/bin/python"
