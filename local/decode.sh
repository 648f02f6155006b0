#!/usr/bin/env bash
# Stage 12 of a recipe: recognise data sets.
set -euo pipefail

help_message="Usage: local/decode.sh [options] <data-dir> <model-dir> <decode-dir>
 e.g.: local/decode.sh --chunk-ms \"160 480\" --decoder wfst --lm exp/lm/words.arpa --lexicon data/phones/lexicon.txt \\
           --nj 8 --cmd queue.pl data/test exp/student_stream exp/student_stream

Recognises <data-dir> (several in quotes) with a teacher or a student, or a packed model, in batches. A streaming
student gives what it would give chunk by chunk on live audio, which is checked on a sample of the utterances; their
time is the speed that local/score.sh reports. What is recognised is in <decode-dir>/decode_480ms/test for data/test and
chunks of 480 ms, decode_full/test without chunks, decode_480ms_wfst/test with the decoder wfst: text in Kaldi's format,
and hyp.*.jsonl with times and confidences. local/score.sh scores it. Called again it does only what is missing: data
sets and chunk lengths that are new, or whose model, data or options have changed.

  --chunk-ms \"A B\"         chunk lengths in ms; full: the whole utterance at once (default: full)
  --decoder NAME           greedy, beam (CTC prefix beam search) or wfst (token-lexicon-grammar graph) (default: greedy)
  --lm FILE                word n-gram, ARPA (beam: optional; wfst: needed)
  --tuned FILE             weights of the language model (local/tune.sh)
  --lexicon FILE           words and their tokens, for wfst (needed for phones)
  --decode-options STR     more options, such as \"--nbest 10\"; distill.bin.decode has them all
  --redo true              do everything, even if nothing has changed (default: false)
  --cmd CMD, --nj N        how jobs are run, and how many (default: run.pl, 4)
  --ngpu N                 GPUs, with a job on each; 0: run on the CPU (default: the GPUs of this machine)"

chunk_ms=full
decoder=greedy
lm=
tuned=
lexicon=
decode_options=
redo=false
cmd=run.pl
nj=4
ngpu=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"
on_gpus

read -r -a data <<< "$1"
model=$2 dir=$3
read -r -a chunks <<< "${chunk_ms}"
read -r -a options <<< "${decode_options}"
inputs=("${model}")
if [ -d "${model}" ]; then
    inputs=("${model}/config.yaml")
    # The weights that are loaded: the first of these
    for weights in "${model}"/{model.safetensors,model.pth,*.ave.pth,*.best.pth,latest.pth}; do
        if [ -e "${weights}" ]; then inputs+=("${weights}"); break; fi
    done
fi
suffix=
if [ "${decoder}" != greedy ]; then
    suffix=_${decoder}
    options=(--decoder "${decoder}" "${options[@]}")
    if [ -n "${lm}" ]; then options+=(--lm "${lm}"); fi
    if [ -n "${tuned}" ]; then options+=(--tuned "${tuned}"); fi
    if [ -n "${lexicon}" ]; then options+=(--lexicon "${lexicon}"); fi
    for file in "${lm}" "${tuned}" "${lexicon}"; do
        if [ -n "${file}" ]; then inputs+=("${file}"); fi
    done
fi
for file in "${inputs[@]}" "${data[@]/%//wav.scp}"; do [ -f "${file}" ] || fail "${file}: not found"; done

# Hypotheses of a set at a chunk length are kept while they are made from files with this content, with these options.
# ${output}/text comes last, when all jobs have ended; until then their number matters too.
common="${decode_options} $(sha256sum "${inputs[@]}" | cut -d ' ' -f 1 | tr '\n' ' ')"
missing=() kept=0
for set in "${data[@]}"; do
    made_from="${common}$(sha256sum < "${set}/wav.scp")"
    for chunk in "${chunks[@]}"; do
        if [ "${chunk}" = full ]; then name=full; else name=${chunk}ms; fi
        output=${dir}/decode_${name}${suffix}/$(basename "${set}")
        earlier=$(cat "${output}/made_from" 2> /dev/null || true)
        hypotheses=("${output}"/hyp.*.jsonl)
        if [ "${redo}" != true ] && [ -e "${output}/text" ] && [ -e "${hypotheses[0]}" ] &&
            [ "${earlier}" = "${made_from} of ${#hypotheses[@]} jobs" ]; then
            kept=$((kept + 1))
            continue
        fi
        missing+=("${output}")
        rm -f "${output}/text"
        if [ "${redo}" = true ] || [ "${earlier}" != "${made_from} of ${nj} jobs" ]; then
            if [ -n "${earlier}" ]; then log "${output}: the model, the data or the options changed; done again"; fi
            rm -f "${output}/made_from" # first, as it vouches for the rest
            rm -rf "${output}"
            mkdir -p "${output}"
            echo "${made_from} of ${nj} jobs" > "${output}/made_from"
        fi
    done
done
if [ "${kept}" -gt 0 ]; then log "${dir}: ${kept} results of a set and chunk length are there already and unchanged"; fi
if [ ${#missing[@]} = 0 ]; then exit 0; fi
mkdir -p "${dir}/log"
# shellcheck disable=SC2086
python3 -m distill.bin.watch_jobs --logs "${dir}/log/decode.*.log" -- \
    ${cmd} JOB=1:"${nj}" "${dir}/log/decode.JOB.log" \
    python3 -m distill.bin.decode --model "${model}" --output "${dir}" --data_dirs "${data[@]}" \
    --chunk_ms "${chunks[@]}" --job JOB --num_jobs "${nj}" --device "${device}" "${options[@]}"
python3 -m distill.bin.kaldi_text "${missing[@]}" > /dev/null
