#!/usr/bin/env bash
# Prints the interpreter of the project's environment, and builds the environment first if there is none. With the
# argument k2: the environment with k2, which needs an older Python and torch than the rest of the project.
# Environments are in $DISTILL_ENV_HOME (default ~/.cache/distillw2v2), named after the checksum of requirements.txt and
# the version of Python: clones with the same requirements share one, and changed requirements get a new one. It may
# be another user's that cannot be written. One whose building was interrupted, or that has lost files since, is built
# again. Progress goes to stderr.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "${root}/utils/env_home.sh"
case "${1:-}" in
    "") name=env requirements=${root}/requirements.txt minors=(12 13) size="7 GB" extra=() ;;
    k2) name=env-k2 requirements=${root}/requirements-k2.txt minors=(11) size="3.5 GB" extra=(--no-deps) ;;
    *) echo "error: $0: unknown argument '$1'; give none or k2" >&2; exit 2 ;;
esac
read -r hash _ < <(sha256sum "${requirements}")
prefix=${env_home}/${name}-${hash:0:12}

say() { echo "$*" >&2; }

# Size and path of an environment's files, without those deep in a package: it is asked for at every start
list_files() {
    (cd "$1" && find lib -maxdepth 5 -name __pycache__ -prune -o -type f -printf '%s %p\n' | LC_ALL=C sort)
}

# Whether an environment was built to its end and still has all its files
is_whole() {
    local lost
    [ -f "$1/.complete" ] && "$1/bin/python" -c "" 2> /dev/null || return 1
    lost=$(list_files "$1" | LC_ALL=C comm -23 "$1/.complete" - | sed -n '1s/[^ ]* //p')
    if [ -n "${lost}" ]; then
        say "note: $1: is damaged (${lost} is missing or has another size)"
        return 1
    fi
}

# Prints the minor version and the path of a Python that the pinned packages support
find_python() {
    local minor candidate found
    for minor in "${minors[@]}"; do
        local candidates=("python3.${minor}" "${PYENV_ROOT:-${HOME}/.pyenv}/versions/3.${minor}".*/bin/python)
        if command -v uv > /dev/null; then
            candidates+=("$(uv python find "3.${minor}" 2> /dev/null || true)")
        fi
        for candidate in "${candidates[@]}"; do
            # pyenv has a shim for every version, also for those that are not active, so the candidate is run.
            found=$("${candidate}" -c "
import sys, venv, ensurepip
assert sys.version_info[:2] == (3, ${minor})
print(sys.version_info[1], sys.executable)" 2> /dev/null) || continue
            echo "${found}"
            return
        done
    done
    return 1
}

# Shows pip's output as one line that counts packages; as a line every 20 packages if stderr is not a terminal
show_progress() {
    local line total count=0
    total=$(grep -c == "${requirements}" || true)
    while IFS= read -r line; do
        case "${line}" in
            Collecting*) count=$((count + 1)) ;;
            "Installing collected"*) line="Installing all (a minute or two)"; count=${total} ;;
            *) continue ;;
        esac
        if [ -t 2 ]; then
            printf '\r%3d/%d %-60.60s' "${count}" "${total}" "${line}" >&2
        elif [ $((count % 20)) -eq 0 ] || [ "${count}" -eq "${total}" ]; then
            say "${count}/${total} ${line}"
        fi
    done
    if [ -t 2 ]; then echo >&2; fi
}

for minor in "${minors[@]}"; do
    if is_whole "${prefix}-py3${minor}"; then
        echo "${prefix}-py3${minor}/bin/python"
        exit 0
    fi
done
found=$(find_python) || {
    first=3.${minors[0]}
    wanted=$(printf ' or 3.%s' "${minors[@]}")
    say "error: no Python ${wanted# or } found; install one (apt install python${first}-venv, pyenv install ${first}" \
        "or uv python install ${first})"
    exit 2
}
read -r minor python <<< "${found}"
env=${prefix}-py3${minor}
if ! mkdir -p "${env_home}" 2> /dev/null || [ ! -w "${env_home}" ] || { [ -e "${env}" ] && [ ! -w "${env}" ]; }; then
    say "error: ${env}: there is no usable environment, and none can be built there, since you cannot write there; set" \
        "DISTILL_ENV_HOME to a directory of yours with ${size} to spare"
    exit 2
fi
exec 9> "${env}.lock"
if ! flock -n 9; then
    say "waiting for another build of ${env}"
    flock 9
fi
if ! is_whole "${env}" 2> /dev/null; then
    say "building the environment in ${env} with ${python} (about ${size}, some minutes; once)"
    rm -rf "${env}"
    "${python}" -m venv "${env}" >&2
    if ! "${env}/bin/python" -m pip install --progress-bar off "${extra[@]}" --require-hashes \
        --requirement "${requirements}" 2> "${env}.log" | show_progress; then
        tail -n 3 "${env}.log" >&2
        say "error: ${requirements}: pip could not install it in ${env}; the whole message is in ${env}.log"
        exit 2
    fi
    list_files "${env}" > "${env}.files"
    mv "${env}.files" "${env}/.complete"
    say "built ${env} in ${SECONDS} s"
fi
echo "${env}/bin/python"
