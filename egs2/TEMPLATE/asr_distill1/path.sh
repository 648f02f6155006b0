# shellcheck shell=bash
# Puts the project's Python, ESPnet's scripts and sclite on PATH. Sourced from a recipe directory.
distill_template=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
DISTILL_ROOT=$(cd "${distill_template}/../../.." && pwd)
distill_python=$(make -s -C "${DISTILL_ROOT}" python) || exit 2
ESPNET_ROOT=$("${DISTILL_ROOT}/utils/get_espnet.sh") || exit 2
export DISTILL_ROOT ESPNET_ROOT

# ESPnet's data scripts look for these beside the recipe's run.sh
for name in utils steps scripts pyscripts; do
    ln -sfn "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/${name}" "${name}"
done

PATH="$(dirname "${distill_python}"):${PWD}/utils:${PATH}:/usr/lib/sctk/bin"
export PATH
export PYTHONPATH="${DISTILL_ROOT}${PYTHONPATH:+:${PYTHONPATH}}"
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Within a job of slurm: since its version 22.05 srun does not know by itself how many cores the job has for a task.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK}; fi

# asr.sh trains sentencepiece by this command, which the Python package does not bring
spm_train() {
    python3 -c 'import sys, sentencepiece; sentencepiece.SentencePieceTrainer.Train(" ".join(sys.argv[1:]))' "$@"
}
