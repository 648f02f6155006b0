# shellcheck shell=bash
# Sourced from a recipe directory: the environment of the project's top-level local/, and what ESPnet's scripts expect.
distill_template=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
. "${distill_template}/../../../local/path.sh"

# ESPnet's data scripts look for these beside the recipe's run.sh
for name in utils steps scripts pyscripts; do
    ln -sfn "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/${name}" "${name}"
done

# asr.sh trains sentencepiece by this command, which the Python package does not bring
spm_train() {
    python3 -c 'import sys, sentencepiece; sentencepiece.SentencePieceTrainer.Train(" ".join(sys.argv[1:]))' "$@"
}
