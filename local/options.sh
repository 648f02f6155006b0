# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # help_message is set by the script, which uses what is set here
# Sourced by a script after it has set help_message and the default of every option: prepares the environment and reads
# the options from the command line. What is left in "$@" are the script's arguments.
log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') $*"; }
fail() { echo "error: $*" >&2; exit 2; }
# arguments COUNT "$@": refuse another number of arguments than COUNT, or none of them where COUNT is "some".
arguments() {
    local count=$1
    shift
    if [ $# -gt 0 ] && [ "${count}" = some ]; then return 0; fi
    [ $# = "${count}" ] || fail "$0: $# arguments instead of ${count}. $(head -n 1 <<< "${help_message}")"
}

# no_such_option --NAME: say so, with the options of help_message that are spelt nearly like it
no_such_option() {
    local near
    near=$(python3 -c 'import difflib, re, sys
names = sorted(set(re.findall(r"--[a-z][\w-]*", sys.argv[2])))
print(" or ".join(difflib.get_close_matches(sys.argv[1].replace("-", "_").replace("__", "--", 1), names, 2, 0.75)))' \
        "$1" "${help_message}")
    fail "$1: no such option; ${near:+${near}? }--help lists all"
}
# gpus_here: number of this machine's GPUs, of those in CUDA_VISIBLE_DEVICES if it is set
gpus_here() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<< "${CUDA_VISIBLE_DEVICES}" | grep -c '^ *[^ -]' || true
    else
        nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true
    fi
}
# on_gpus: a job on each of ${ngpu} GPUs (default: those of this machine); without any, ${nj} jobs on the CPU
on_gpus() {
    ngpu=${ngpu:-$(gpus_here)}
    device=cpu
    if [ "${ngpu}" -gt 0 ]; then nj=${ngpu} cmd="${cmd} --gpu 1" device=cuda; fi
}

# Answered before the environment is needed
given=()
for argument in "$@"; do
    if [ "${argument}" = -h ] || [ "${argument}" = --help ]; then
        echo "${help_message}"
        # A recipe's run.sh gives options of its own, which are other defaults than those above.
        if [ ${#given[@]} -gt 1 ]; then printf '\nGiven already, in place of these defaults:\n'; fi
        for ((n = 0; n + 1 < ${#given[@]}; n += 2)); do echo "  ${given[n]} ${given[n + 1]@Q}"; done
        exit 0
    fi
    given+=("${argument}")
done
. "$(dirname "${BASH_SOURCE[0]}")/path.sh"
while [ $# -gt 0 ]; do
    case "$1" in
        --*=*) fail "$1: write ${1%%=*} ${1#*=}" ;;
        --*) ;;
        *) break ;;
    esac
    option=${1#--}
    option=${option//-/_}
    [[ "${option}" =~ ^[a-z][a-z0-9_]*$ && -n "${!option+set}" ]] || no_such_option "$1"
    [ $# -gt 1 ] || fail "$1: needs a value; --help says which"
    case "${!option}" in
        true | false) [[ "$2" = true || "$2" = false ]] || fail "$1 $2: must be true or false" ;;
    esac
    printf -v "${option}" '%s' "$2"
    shift 2
done
