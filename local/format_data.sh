#!/usr/bin/env bash
# A Kaldi data directory as the other scripts need it. Recipes have ESPnet's stages 3 and 4 for this.
set -euo pipefail

help_message="Usage: local/format_data.sh [options] <data-dir> <formatted-dir>
 e.g.: local/format_data.sh --allow-pipes true --nj 8 --cmd queue.pl data/train data_16k/train

Checks <data-dir>, cuts its segments, and writes the audio of every utterance as a one-channel file of 16 kHz. In
<formatted-dir> are wav.scp, text, utt2spk, spk2utt and utt2num_samples. Called again it does nothing if <data-dir>
has the same tables.

  --allow-pipes true     run the commands in wav.scp (default: false)
  --resample true        accept other sampling rates than 16 kHz and convert them (default: false)
  --audio-format TYPE    flac or wav (default: flac)
  --cmd CMD, --nj N      how jobs are run, and how many (default: run.pl, 4)"

allow_pipes=false
resample=false
audio_format=flac
cmd=run.pl
nj=4
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/options.sh"
arguments 2 "$@"

data=$1 dir=$2
inputs=()
for table in wav.scp segments text utt2spk; do
    if [ -e "${data}/${table}" ]; then inputs+=("${data}/${table}"); fi
done
stamp=${dir}/.made_from/format
state=0
python3 -m distill.bin.stage begin "${stamp}" --options="${audio_format}" "${inputs[@]}" || state=$?
if [ "${state}" = 0 ] && [ -e "${dir}/wav.scp" ]; then
    log "${dir}: done before and unchanged, skipped"
    exit 0
fi
[ "${state}" != 2 ] || exit 2
rm -f "${dir}/wav.scp"
"${here}/check_data.sh" --allow-pipes "${allow_pipes}" --resample "${resample}" "${data}"
logs=${dir}/log
mkdir -p "${logs}" "${dir}/data"
table=wav.scp whole=() part=("${logs}/wav.scp.JOB")
if [ -e "${data}/segments" ]; then
    table=segments whole=("--segment=${logs}/segments.JOB") part=("${data}/wav.scp")
fi
lines=$(wc -l < "${data}/${table}")
nj=$((nj < lines ? nj : lines))
parts=()
for ((job = 1; job <= nj; job++)); do parts+=("${logs}/${table}.${job}"); done
split_scp.pl "${data}/${table}" "${parts[@]}"
# shellcheck disable=SC2086
python3 -m distill.bin.watch_jobs --logs "${logs}/format.*.log" -- \
    ${cmd} JOB=1:"${nj}" "${logs}/format.JOB.log" \
    "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/pyscripts/audio/format_wav_scp.py" --fs 16k --audio-format "${audio_format}" \
    "${whole[@]}" "${part[@]}" "${dir}/data/format.JOB"
for table in text utt2spk spk2utt; do
    if [ -e "${data}/${table}" ]; then cp "${data}/${table}" "${dir}/${table}"; fi
done
for ((job = 1; job <= nj; job++)); do cat "${dir}/data/format.${job}/utt2num_samples"; done > "${dir}/utt2num_samples"
for ((job = 1; job <= nj; job++)); do cat "${dir}/data/format.${job}/wav.scp"; done > "${dir}/wav.scp.part"
mv "${dir}/wav.scp.part" "${dir}/wav.scp"
if [ -e "${stamp}.begun" ]; then python3 -m distill.bin.stage finish "${stamp}"; fi
