# shellcheck shell=bash
# Sourced, after options.sh: what makes a run.sh of stages. ${stage} to ${stop_stage} are run, ${force_stage} even if it
# was done before and nothing has changed since. What a stage was made from is kept in its stamp, DIR/NUMBER or
# DIR/NUMBER_NAME; the stamp of an earlier stage is an input of those that use what it made.
# shellcheck disable=SC2154  # these three are set by the script that sources this

# wanted NUMBER: true if that stage is among those to be run
wanted() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

# begin STAMP TITLE OPTIONS OUTPUT INPUT...: true if the stage is to be run, as it never was, or as its options or input
# files have changed. What an earlier run left in OUTPUT (may be "") is continued if it was made from the same, and put
# aside if not.
begin() {
    local number=${1##*/} forced=() status=0
    number=${number%%_*}
    if [ "${force_stage}" = "${number}" ]; then forced=(--force); fi
    log "stage ${number}: $2"
    python3 -m distill.bin.stage begin "$1" --options="$3" --output="$4" "${forced[@]}" "${@:5}" || status=$?
    if [ "${status}" = 3 ] || [ "${status}" = 4 ]; then return 0; fi
    [ "${status}" = 0 ] || exit 2
    log "stage ${number}: done before and unchanged, skipped"
    return 1
}

# finish STAMP: the stage that was begun has been done.
finish() { python3 -m distill.bin.stage finish "$1"; }

# run_stage STAMP TITLE OPTIONS OUTPUT INPUT... -- COMMAND...: run the command, if it is to be run, between these two
run_stage() {
    local begun=("${@:1:4}") stamp=$1
    shift 4
    while [ "$1" != -- ]; do
        begun+=("$1")
        shift
    done
    begin "${begun[@]}" || return 0
    local began=${SECONDS}
    "${@:2}"
    finish "${stamp}"
    stamp=${stamp##*/}
    log "stage ${stamp%%_*}: done in $(minutes $((SECONDS - began)))"
}

# minutes SECONDS: such as "3 min 20 s"
minutes() { if [ "$1" -lt 60 ]; then echo "$1 s"; else echo "$(($1 / 60)) min $(($1 % 60)) s"; fi; }

# quietly LOG COMMAND...: run a command of another toolkit whose output few want to see; it goes to LOG. If the command
# fails, one line names the log and, if there is one, the error in it.
quietly() {
    local output=$1 reason
    shift
    mkdir -p "$(dirname "${output}")"
    # Where the disk is full, not every command that lost its output says so.
    "$@" > "${output}" 2>&1 && has_room "${output}" && return 0
    # A full disk comes first, as it breaks whatever else is in the log, and may have left no room for that either.
    reason=$(grep -E "No space left|Disk quota exceeded" "${output}" | tail -n 1) || true
    [ -n "${reason}" ] || has_room "${output}" || reason="No space left on device"
    [ -z "${reason}" ] || fail "${output}: failed: ${reason}; make room on that disk and run the same command again"
    reason=$(grep -E "[Ee]rror|not found" "${output}" | tail -n 1) || true
    reason=${reason:-$(tail -n 1 "${output}")}
    case "${reason}" in *"Vocabulary size too high"*) reason+=" (--nbpe; or take --token_type char)" ;; esac
    fail "${output}: failed: ${reason}"
}

# has_room PATH: whether its disk has a megabyte left, as far as df can tell
has_room() {
    local left
    left=$(df --output=avail -k "$1" 2> /dev/null | tail -n 1 | tr -d ' ') || return 0
    [[ ! "${left}" =~ ^[0-9]+$ ]] || [ "${left}" -ge 1024 ]
}

# at_end: what is done when the script ends. Where a command of the shell has failed, such as cp, a full disk is named.
at_end() {
    local status=$? place
    [ -z "${beside:-}" ] || pkill -TERM -P "${beside}" || true
    [ "${status}" = 1 ] || return 0
    for place in "${dumpdir:-.}" "${expdir:-.}"; do
        [ ! -d "${place}" ] || has_room "${place}" ||
            fail "${place}/: No space left on device; make room on that disk and run the same command again"
    done
}
trap at_end EXIT

# existing_files "DIR..." "NAME..." [PREFIX]: those of the named files in PREFIXDIR that exist, a line each; a directory
# may be written NAME=DIR
existing_files() {
    local directory name
    for directory in $1; do
        directory=${3:-}${directory#*=}
        for name in $2; do [ ! -f "${directory}/${name}" ] || echo "${directory}/${name}"; done
    done
}

# other_words "WORD...": the words that are no data directory, DIR or NAME=DIR
other_words() {
    local word words=()
    for word in $1; do [ -f "${word#*=}/wav.scp" ] || words+=("${word}"); done
    echo "${words[*]}"
}

# take_texts RAW FILE...: copy data/SET/text to where the formatted audio of SET is, RAW/org/SET or RAW/SET
take_texts() {
    local file set
    for file in "${@:2}"; do
        set=${file%/text} set=${set##*/}
        if [ -d "$1/org/${set}" ]; then set=org/${set}; fi
        cp "${file}" "$1/${set}/text"
    done
}

# left_out BEFORE AFTER: say which utterances of one data directory are not in the other, and how long they are
left_out() {
    local missing count
    missing=$(comm -23 <(cut -d ' ' -f 1 "$1/wav.scp" | LC_ALL=C sort) <(cut -d ' ' -f 1 "$2/wav.scp" | LC_ALL=C sort))
    [ -n "${missing}" ] || return 0
    count=$(wc -l <<< "${missing}")
    log "left out: ${count} of $(wc -l < "$1/wav.scp") utterances of other lengths or without text:" \
        "$(join -j 1 -o 0,2.2 <(head -n 3 <<< "${missing}") <(LC_ALL=C sort "$1/utt2num_samples") \
            | awk '{ printf "%s%s (%.1f s)", separator, $1, $2 / 16000; separator = ", " }')$([ "${count}" -le 3 ] || echo " ...")"
}

# start_beside STAMP PROGRESS COMMAND...: run a training of a stage that was begun beside those that follow, with its
# progress in a file; it ends with this script
start_beside() {
    beside_stamp=$1 beside_progress=$2
    mkdir -p "${beside_progress%/*}"
    log "training in ${beside_progress%/*} as well, beside the others; progress in ${beside_progress}"
    "${@:3}" 2> "${beside_progress}" &
    beside=$!
}

# wait_beside: wait for that training, if there is one, and finish its stage
wait_beside() {
    local running=${beside:-}
    [ -n "${running}" ] || return 0
    if kill -0 "${running}" 2> /dev/null; then log "waiting for the training in ${beside_progress%/*}"; fi
    tail -n 1 -f --pid="${running}" "${beside_progress}" >&2 || true
    beside=
    wait "${running}" || exit 2
    finish "${beside_stamp}"
}

# summary EXPDIR: what the run has made, and what comes next
summary() {
    local made
    log "finished stages ${stage} to ${stop_stage} in $(minutes "${SECONDS}")"
    for made in "results: $1/RESULTS.md" "report: $1/report/index.html" "packed model: $1/student_stream.zip" \
        "exported: $1/export"; do
        # What is older than the results belongs to an earlier run.
        if [ -e "${made#*: }" ] && [ ! "$1/results.json" -nt "${made#*: }" ]; then echo "  ${made}"; fi
    done
    if [ "${stop_stage}" -ge 16 ]; then return 0; fi
    if [ -e "$1/student_stream.zip" ] && [ ! "$1/results.json" -nt "$1/student_stream.zip" ]; then return 0; fi
    echo "  next: the same command with --stage $((stop_stage + 1)) --stop_stage 16; what is done is skipped"
}

# lock EXPDIR DUMPDIR: one run at a time in each of them; whoever a killed run left behind counts as one. The lock on
# file descriptor 9 or 8 goes with the last process that has it open; those of a run that was killed a moment ago may
# need a few seconds to die.
lock() {
    command -v flock > /dev/null || return 0
    exec 9> "$1/.lock"
    flock -w 5 9 || fail "$1: another run is at work there (fuser $1/.lock names it); end it, or give --expdir"
    exec 8> "$2/.lock"
    flock -n 8 || { log "waiting for another run to end its data preparation in $2"; flock 8; }
}
