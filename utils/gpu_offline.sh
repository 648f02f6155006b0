#!/usr/bin/env bash
# Tests, benchmark and an experiment on a GPU machine that has PyTorch and no network.
#
#   utils/gpu_offline.sh pack CORPORA [MB]
#       here: fetches the wheels of requirements.txt that such a machine lacks, and packs the recordings below CORPORA
#       (utils/gpu_data.py says of which corpora) into tools/gpu, in portions that fit with this tree into MB megabytes
#       (default: 67). It prints what to copy in which call; a later call may leave out what an earlier one brought.
#
#   utils/gpu_offline.sh run [STEP ...] [--limit_s N] [--device cpu] [--dry_run]
#       there, in a copy of this tree: tests, bench and experiment, or those that are named, in at most N seconds
#       (default: 560). Results are in $OUT (default: tools/gpu/out) as they come; report.md has all of them.
#       Networks and finished steps stay in $WORK (default: /tmp/distill-gpu), so that another call goes on with the
#       experiment. `run collect NAME` copies a network of it to $OUT in parts of 15 MB: cat NAME.tar.* | tar x
#       --dry_run: everything with tiny networks, to try it without a GPU (with --device cpu)
#
# Copied along (ignored by git, so to be named): tools/gpu/wheels, tools/gpu/data-1, tools/gpu/data-2, tools/gpu/data-3
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "${root}"
packed=${root}/tools/gpu
# Of the requirements those that distill imports and a PyTorch image lacks; test/utils/test_gpu_offline.py checks it
packages=(annotated-types cffi editdistance espnet humanfriendly kaldiio librosa omniio pycparser pydantic pydantic-core
    pytorch-ranger soundfile soxr torch-complex torch-optimizer typeguard typing-inspection)
part_bytes=$((15 * 1024 * 1024)) # of a network's archive
parts_at_most=3                  # beside log.txt, report.md and three files of figures

usage() { sed -n '2,/^set -/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; }
fail() { echo "error: $*" >&2; exit 2; }

# Prints the pinned requirement of a package
pinned() {
    local line
    line=$(grep -i "^$1==" requirements.txt) || fail "requirements.txt: has no $1; correct the packages of $0"
    echo "${line%% *}"
}

bytes_of() { du -cb "$@" | tail -n 1 | cut -f 1; }

pack() {
    local corpora=${1:?"give the directory of the corpora"} most=${2:-67} python requirements=() package tree wheels
    python=$(utils/make_env.sh)
    for package in "${packages[@]}"; do
        requirements+=("$(pinned "${package}")")
    done
    rm -rf "${packed}"
    mkdir -p "${packed}/wheels"
    "${python}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --dest "${packed}/wheels" "${requirements[@]}"
    tree=$(git ls-files -z | du -cb --files0-from=- | tail -n 1 | cut -f 1)
    wheels=$(bytes_of "${packed}/wheels")
    # a megabyte and a half for names and for what is not committed yet
    local whole=$(((most * 1000000 - tree - 1500000) / 1000000))
    PYTHONPATH=. "${python}" utils/gpu_data.py "${corpora}" "${packed}" \
        --limits $((whole - wheels / 1000000 - 1)) "${whole}" "${whole}"
    echo "the tree has $((tree / 1000000)) MB, the wheels $((wheels / 1000000)) MB; copy with the calls in turn:"
    echo "  tools/gpu/wheels tools/gpu/data-1    utils/gpu_offline.sh run tests --limit_s 200"
    echo "  tools/gpu/data-2                     utils/gpu_offline.sh run bench --limit_s 240"
    echo "  tools/gpu/data-3                     utils/gpu_offline.sh run experiment --limit_s 480"
}

# Makes report.md of what the steps have left so far
write_report() {
    {
        echo "# On ${card}"
        echo
        echo "torch ${torch}, $(date -u '+%d %B %Y')."
        for piece in "${work}"/report/*.md; do
            if [ -f "${piece}" ]; then
                echo
                cat "${piece}"
            fi
        done
    } > "${out}/report.md"
}

# step NAME SECONDS COMMAND...: runs it at most so long, its output into the log
step() {
    local name=$1 seconds=$2 started=${SECONDS} status=0
    shift 2
    echo "--- ${name}: at most ${seconds} s, after ${started} s"
    timeout --kill-after 10 "${seconds}" "$@" 2>&1 | tee "${work}/${name}.log" || status=$?
    local outcome="ended"
    case ${status} in
        0) ;;
        124 | 137) outcome="cut off" ;;
        *) outcome="failed with status ${status}" ;;
    esac
    echo "--- ${name}: ${outcome} after $((SECONDS - started)) s"
    echo "Step ${name}: ${outcome} after $((SECONDS - started)) s." > "${work}/report/${order[${name}]}-${name}.md"
}

left() { echo $((limit - SECONDS > 5 ? limit - SECONDS : 5)); }
least() { echo $(($1 < $2 ? $1 : $2)); }

install_wheels() {
    if [ -d "${work}/site" ] || [ ! -d "${packed}/wheels" ]; then
        return
    fi
    "${python}" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "${work}/site.part" \
        "${packed}"/wheels/*.whl
    mv "${work}/site.part" "${work}/site"
}

run_tests() {
    local workers=()
    # In processes side by side: kernels are compiled on all cores, and an error that ends one leaves the others
    if [ "${device}" = cuda ] && "${python}" -c "import xdist" 2> /dev/null; then
        workers=(-n 6)
    fi
    step tests "$(least 180 "$(left)")" "${python}" -m pytest -q --durations 8 -p no:cacheprovider "${workers[@]}" \
        -m gpu test/gpu
    {
        echo
        grep -E '^(FAILED|ERROR)|^[0-9]+ (passed|failed|skipped)' "${work}/tests.log" | sed 's/^/    /' || true
    } >> "${work}/report/${order[tests]}-tests.md"
}

run_bench() {
    step bench "$(least 240 "$(left)")" "${python}" -m distill.bench.gpu --device "${device}" \
        --budget_s 0.5 --output "${out}/bench.md" "${tiny[@]}"
    if [ -f "${out}/bench.md" ]; then
        { echo; sed 's/^#/##/' "${out}/bench.md"; } >> "${work}/report/${order[bench]}-bench.md"
        rm "${out}/bench.md"
    fi
}

run_experiment() {
    local seconds
    seconds=$(($(left) - 8 > 5 ? $(left) - 8 : 5)) # the rest is for what follows
    step experiment "${seconds}" "${python}" utils/gpu_experiment.py --data "${work}"/data/*.zip \
        --work "${work}/exp" --output "${out}" --device "${device}" --limit_s $((seconds - 15)) "${dry[@]}"
    if [ -f "${out}/experiment.md" ]; then
        { echo; cat "${out}/experiment.md"; } >> "${work}/report/${order[experiment]}-experiment.md"
        rm "${out}/experiment.md"
    fi
    collect student_f_stream
}

# Copies a network to $OUT in parts
collect() {
    local directory=${work}/exp/$1.float16 parts
    if [ ! -f "${directory}/model.pth" ]; then
        echo "note: there is no network $1"
        return
    fi
    tar --create --directory "${work}/exp" "$1.float16" | split --bytes ${part_bytes} --numeric-suffixes - "${out}/$1.tar."
    parts=("${out}/$1.tar."*)
    if [ ${#parts[@]} -gt ${parts_at_most} ]; then
        echo "note: $1 has ${#parts[@]} parts"
    fi
}

run() {
    local steps=() network="" name
    limit=560 device=cuda dry=() tiny=()
    while [ $# -gt 0 ]; do
        case $1 in
            tests | bench | experiment) steps+=("$1") ;;
            collect) network=${2:?"collect: give a network, such as student_s5_stream"}; shift ;;
            --limit_s) limit=${2:?"--limit_s: give seconds"}; shift ;;
            --device) device=${2:?"--device: give cuda or cpu"}; shift ;;
            --dry_run) dry=(--dry_run) tiny=(--tiny) ;;
            *) fail "run: $1 is no step and no option; see --help" ;;
        esac
        shift
    done
    if [ ${#steps[@]} -eq 0 ] && [ -z "${network}" ]; then
        steps=(tests bench experiment)
    fi
    python=${PYTHON:-python3} out=${OUT:-${packed}/out} work=${WORK:-/tmp/distill-gpu}
    declare -gA order=([tests]=1 [bench]=2 [experiment]=3)
    mkdir -p "${out}" "${work}/report" "${work}/data"
    exec > >(tee -a "${out}/log.txt") 2>&1
    install_wheels
    export PYTHONPATH=${root}:${work}/site PYTHONUNBUFFERED=1 DISTILL_TEST_DEVICE=${device}
    export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
    for name in "${packed}"/data-*/corpus.zip; do
        if [ -f "${name}" ]; then
            cp "${name}" "${work}/data/$(basename "$(dirname "${name}")").zip"
        fi
    done
    torch=$("${python}" -c "import torch; print(torch.__version__)") || fail "${python}: has no torch; set PYTHON"
    card=$("${python}" -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'a CPU')")
    echo "${card}, torch ${torch}, ready after ${SECONDS} s"
    write_report
    for name in "${steps[@]}"; do
        "run_${name}"
        write_report
    done
    if [ -n "${network}" ]; then
        collect "${network}"
    fi
    echo "--- all after ${SECONDS} s"
}

case ${1:-} in
    pack | run) "$@" ;;
    -h | --help) usage ;;
    *) fail "give pack or run; see $0 --help" ;;
esac
