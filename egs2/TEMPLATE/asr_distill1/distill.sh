#!/usr/bin/env bash
# Teacher -> small student -> streaming student, stage by stage. Called by a recipe's run.sh, in the recipe's directory.
set -euo pipefail

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') $*"; }
fail() { echo "error: $*" >&2; exit 2; }

help_message="Usage: ./run.sh [options]     (options of run.sh come first, yours override them)

 1 data preparation (local/data.sh)       9 collect statistics
 2 speed perturbation (optional)         10 distil teacher -> student_full
 3 format wav.scp                        11 distil student_full -> student_stream
 4 drop too long and too short           12 recognise the test sets
 5 token list                            13 score; results.json and RESULTS.md
 6 denominator graph                     14 latency, size and speed
 7 train the teacher                     15 export student_stream to ONNX and sherpa-onnx
 8 extract the teacher's targets         16 report and packed model

Stages
  --stage N --stop_stage M   first and last stage (default: 1 and 13)
  --force_stage N            run stage N again even if nothing changed
  --dry_run true             only print what the run will cost: disk, GPU-hours, by formulae (default: false)
  --plan_options \"STR\"       the corpus's size for that, such as \"--hours 960 --test_hours 20\", and what else
                             python -m distill.bin.plan --help lists
Data
  --train_set, --valid_set, --test_sets \"A B\"   names below data/
  --local_data_opts STR      options of local/data.sh
  --speed_perturb_factors STR   such as \"0.9 1.0 1.1\" (default: none)
  --audio_format FORMAT      of formatted audio: flac or wav (default: flac)
  --min_wav_duration, --max_wav_duration SECONDS   of training utterances (default: 0.1 and 20)
  --allow_pipes true         let wav.scp hold commands, which are then run (default: false)
  --unlabelled true          the training set has no text: --teacher's own words take its place (default: false)
  --resample true            accept other sampling rates than 16 kHz and convert them (default: false)
Tokens and graph
  --token_type TYPE          char, bpe, word or phn (default: bpe)
  --nbpe N                   number of bpe tokens (default: 500)
  --lexicon FILE, --lang_dir DIR   for phn: a word and its phones on each line, or a Kaldi lang directory
  --ngram_order N            of the denominator's token n-gram (default: 2)
  --ngram_lm FILE            take this token n-gram, ARPA or OpenFst text, instead of one estimated on the training text
Teacher
  --teacher DIR              take this trained experiment as the teacher instead of training one, or this directory in
                             Hugging Face's format of a wav2vec 2.0, HuBERT or WavLM that was fine-tuned with CTC
  --teacher_tokens true      the latter's own vocabulary is the token list (--token_type char; default: false)
  --teacher_init_config F    first training of the teacher, before the next (default: none)
  --teacher_init_max_s S     seconds of the longest utterances in that first training, as a network from scratch learns
                             to align from short ones (default: all)
  --teacher_config F         training of the teacher (default: conf/train_teacher.yaml)
  --teacher_targets WHERE    stored (stage 8) or online, inside the trainer (default: stored)
  --target_dtype TYPE        of stored targets: float32, float16 or compressed (default: float32)
  --targets DIR              take the stored targets that another experiment with this teacher left there, such as
                             dump/targets, instead of extracting them (default: none)
Students
  --student F                take the network of this file, such as conf/students/s5.yaml, in both of the next
  --student_full_config F    (default: conf/train_student_full.yaml)
  --student_stream_config F  (default: conf/train_student_stream.yaml)
  --student_full_args STR, --student_stream_args STR   more options of these trainings, such as
                             \"--distill_conf alpha=0.5\"; python -m distill.bin.train --help lists them
  --stage2_teacher WHICH     teacher of stage 11: teacher, student_full or both (default: teacher)
  --no_kd true               train the same student without a teacher, to compare (default: true)
  --fixed_chunks \"160 480\"   also train streaming students for one chunk length each, to compare (default: none)
Recognition
  --latencies \"160 320 480 960\"   chunk lengths in ms; full: everything at once
  --decoders \"greedy\"       any of greedy, beam (CTC prefix beam search) and wfst (token-lexicon-grammar graph);
                             of phones greedy finds phones only (default: greedy, for phn greedy and wfst)
  --lm FILE                  word n-gram of beam and wfst, ARPA (default: one estimated on the training text); its
                             weight and the bonus per word are tuned on the validation set
  --lm_order N               order of that estimate (default: 3)
  --decode_options \"STR\"    more options of beam and wfst, such as \"--nbest 10 --hotwords FILE --lexicon FILE\"
  --scoring HOW              plain, or gigaspeech: hyphens split, fillers and tags not counted (default: plain)
Export, report and packed model
  --export_chunks \"480\"    chunk lengths in ms to export student_stream for (default: 480)
  --pack_options \"STR\"       such as \"--license cc-by-4.0 --language en\"; python -m distill.bin.pack --help has more
Machine
  --ngpu N --num_nodes N     GPUs (of each node) and nodes of a training; 0 GPUs trains on the CPU (default: 0, 1)
  --nj N                     parallel jobs of data preparation, extraction and recognition (default: 4)
  --threads N                CPU threads of a training (default: all cores)
  --expdir DIR, --dumpdir DIR   (default: exp and dump)
  --seed N                   seed of the trainings (default: 0)"

stage=1
stop_stage=13
force_stage=
dry_run=false
plan_options=
train_set=train
valid_set=valid
test_sets="test"
local_data_opts=
speed_perturb_factors=
audio_format=flac
min_wav_duration=0.1
max_wav_duration=20
allow_pipes=false
unlabelled=false
resample=false
token_type=bpe
nbpe=500
lexicon=
lang_dir=
ngram_order=2
ngram_lm=
teacher=
teacher_tokens=false
teacher_init_config=
teacher_init_max_s=
teacher_config=conf/train_teacher.yaml
teacher_targets=stored
target_dtype=float32
targets=
student=
student_full_config=conf/train_student_full.yaml
student_stream_config=conf/train_student_stream.yaml
student_full_args=
student_stream_args=
stage2_teacher=teacher
no_kd=true
fixed_chunks=
latencies="160 320 480 960"
decoders=
lm=
lm_order=3
decode_options=
scoring=plain
export_chunks=480
pack_options=
ngpu=0
num_nodes=1
nj=4
threads=$(nproc)
expdir=exp
dumpdir=dump
seed=0

# Answered before the environment is needed
for argument in "$@"; do
    case "${argument}" in
        -h | --help) echo "${help_message}"; exit 0 ;;
    esac
done

. ./path.sh
. ./cmd.sh
. utils/parse_options.sh
[ $# -eq 0 ] || fail "distill.sh: unexpected argument '$1'; --help lists the options"

case "${token_type}" in
    bpe) token_dir=data/token_list/bpe_unigram${nbpe} ;;
    char | word | phn) token_dir=data/token_list/${token_type} ;;
    *) fail "--token_type ${token_type}: must be char, bpe, word or phn" ;;
esac
# What the networks are trained on, and the options of phones
train_text=text
lm_text=lm_train.txt
lexicon_options=()
lexicon_files=()
if [ "${token_type}" = phn ]; then
    train_text=text.phn
    lm_text=lm_train.txt.phn
    decoders=${decoders:-greedy wfst}
    if [ -n "${lexicon}" ] && [ -z "${lang_dir}" ]; then
        lexicon_options=(--lexicon "${lexicon}")
        lexicon_files=("${lexicon}")
    elif [ -n "${lang_dir}" ] && [ -z "${lexicon}" ]; then
        lexicon_options=(--lang_dir "${lang_dir}")
        lexicon_files=("${lang_dir}/phones.txt" "${lang_dir}/phones/align_lexicon.txt")
    else
        fail "--token_type phn: needs either --lexicon FILE or --lang_dir DIR"
    fi
    case " ${decoders} " in *" beam "*) fail "--decoders beam: finds no words in phones; take wfst" ;; esac
    decode_options="--lexicon ${token_dir}/lexicon.txt ${decode_options}"
elif [ -n "${lexicon}${lang_dir}" ]; then
    fail "--lexicon, --lang_dir: need --token_type phn; for wfst's spellings give --decode_options \"--lexicon FILE\""
fi
decoders=${decoders:-greedy}
case "${teacher_targets}" in stored | online) ;; *) fail "--teacher_targets ${teacher_targets}: stored or online" ;; esac
case "${stage2_teacher}" in
    teacher | student_full | both) ;;
    *) fail "--stage2_teacher ${stage2_teacher}: must be teacher, student_full or both" ;;
esac
for decoder in ${decoders}; do
    case "${decoder}" in greedy | beam | wfst) ;; *) fail "--decoders ${decoder}: any of greedy, beam and wfst" ;; esac
done
case "${scoring}" in plain | gigaspeech) ;; *) fail "--scoring ${scoring}: plain or gigaspeech" ;; esac
token_list=${token_dir}/tokens.txt
hf_teacher=false
if [ -n "${teacher}" ] && [ ! -e "${teacher}/config.yaml" ] && [ -e "${teacher}/config.json" ]; then hf_teacher=true; fi
if ${teacher_tokens} && { ! ${hf_teacher} || [ "${token_type}" != char ]; }; then
    fail "--teacher_tokens true: needs --token_type char and a --teacher in Hugging Face's format"
fi
if ${unlabelled} && [ -z "${teacher}" ]; then fail "--unlabelled true: needs a --teacher that is trained already"; fi
bpemodel=
if [ "${token_type}" = bpe ]; then bpemodel=${token_dir}/bpe.model; fi
if [ -n "${student}" ]; then
    merged=${expdir}/conf
    if ${dry_run}; then
        merged=$(mktemp -d)
        trap 'rm -rf "${merged}"' EXIT
    fi
    for config in student_full_config student_stream_config; do
        python3 -m distill.bin.student_config --config "${!config}" --student "${student}" \
            --output "${merged}/${config}.yaml"
        printf -v "${config}" '%s' "${merged}/${config}.yaml"
    done
fi
if ${dry_run}; then
    plan=(--teacher_config "${teacher_config}" --student_full_config "${student_full_config}"
        --student_stream_config "${student_stream_config}" --teacher_targets "${teacher_targets}")
    if [ -n "${teacher}" ]; then
        plan+=(--adopted)
    elif [ -n "${teacher_init_config}" ]; then
        plan+=(--teacher_init_config "${teacher_init_config}")
    fi
    if [ "${token_type}" = bpe ]; then plan+=(--vocab "${nbpe}"); fi
    if [ "${ngpu}" -gt 0 ]; then plan+=(--ngpu $((ngpu * num_nodes))); fi
    # shellcheck disable=SC2086
    python3 -m distill.bin.plan "${plan[@]}" --latencies "$(wc -w <<< "${latencies}")" ${plan_options}
    exit 0
fi
original_train_set=${train_set}
if [ -n "${speed_perturb_factors}" ]; then train_set=${train_set}_sp; fi
raw=${dumpdir}/raw
graph=${expdir}/graph/den.npz
extract_targets=false
if [ "${teacher_targets}" = stored ] && [ -z "${targets}" ]; then
    extract_targets=true
    targets=${dumpdir}/targets
    if [ "${expdir}" != exp ]; then targets+=_${expdir##*/}; fi
fi
shapes=${expdir}/stats/train/speech_shape
stamps=${expdir}/.stages
data_stamps=${dumpdir}/.stages
mkdir -p "${stamps}" "${data_stamps}"
# One run at a time in an experiment directory; whoever a killed run left behind counts as one. The lock goes with the
# last process that has it open; those of a run that was killed a moment ago may need a few seconds to die.
if command -v flock > /dev/null; then
    exec 9> "${expdir}/.lock"
    flock -w 5 9 || fail "${expdir}: another run is at work there (fuser ${expdir}/.lock names it); end it, or give --expdir"
    exec 8> "${dumpdir}/.lock"
    flock -n 8 || { log "waiting for another run to end its data preparation in ${dumpdir}"; flock 8; }
fi

# ESPnet's own data stages, which know no phones and up to stage 4 need no tokens
espnet_data() {
    "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/asr.sh" \
        --stage "$1" --stop_stage "$1" --nj "${nj}" --ngpu 0 --dumpdir "${dumpdir}" --expdir "${expdir}" \
        --train_set "${original_train_set}" --valid_set "${valid_set}" --test_sets "${test_sets}" \
        --local_data_opts "${local_data_opts}" --speed_perturb_factors "${speed_perturb_factors}" \
        --audio_format "${audio_format}" --fs 16k --feats_type raw \
        --lm_train_text "data/${original_train_set}/text" \
        --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}" \
        --token_type "${token_type/phn/word}" --nbpe "${nbpe}" --use_lm false --asr_config none
}

# begin STAMP TITLE OPTIONS OUTPUT INPUT...: true if the stage is to be run. What an earlier run left in OUTPUT is gone
# on with if its inputs were the same, and put aside (and ${stale} set) if not.
begin() {
    local stamp=$1 title=$2 stage_options=$3 output=$4 status=0
    stale=false
    shift 4
    local name=${stamp##*/}
    local forced=false
    if [ "${force_stage}" = "${name%%_*}" ]; then
        forced=true
        rm -f "${stamp}" "${stamp}.begun"
    fi
    log "stage ${name%%_*}: ${title}"
    python3 -m distill.bin.stage begin "${stamp}" --options "${stage_options}" "$@" || status=$?
    if ${forced} && [ "${status}" = 3 ]; then status=4; fi
    case "${status}" in
        0) log "stage ${name%%_*}: done before and unchanged, skipped"; return 1 ;;
        3) return 0 ;;
        4)
            stale=true
            if [ -n "${output}" ] && [ -e "${output}" ]; then
                local aside
                aside=${output}.old-$(date +%Y%m%d-%H%M%S)
                mv "${output}" "${aside}"
                log "stage ${name%%_*}: what the earlier run made is now in ${aside}"
            fi
            return 0
            ;;
        *) exit 2 ;;
    esac
}
finish() { python3 -m distill.bin.stage finish "$1"; }
wanted() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

# ---------------------------------------------------------------- data
if wanted 1; then
    with_text=${local_data_opts}
    if ${unlabelled}; then with_text+=" (unlabelled)"; fi
    if begin "${data_stamps}/1" "data preparation" "${with_text}" "" local/data.sh; then
        checks="--resample ${resample} --allow_pipes ${allow_pipes}"
        # shellcheck disable=SC2086
        CHECK_DATA_OPTIONS="${checks} --unlabelled ${unlabelled}" local/data.sh ${local_data_opts} || exit 2
        data_dirs=()
        for set in ${valid_set} ${test_sets}; do data_dirs+=("data/${set}"); done
        # shellcheck disable=SC2086
        python3 -m distill.bin.check_data --data "data/${original_train_set}" ${checks} --unlabelled "${unlabelled}"
        # shellcheck disable=SC2086
        python3 -m distill.bin.check_data --data "${data_dirs[@]}" ${checks}
        finish "${data_stamps}/1"
    fi
fi
if wanted 2 && [ -n "${speed_perturb_factors}" ]; then
    if begin "${data_stamps}/2" "speed perturbation" "${speed_perturb_factors}" "" "${data_stamps}/1"; then
        espnet_data 2
        finish "${data_stamps}/2"
    fi
fi
if wanted 3; then
    if begin "${data_stamps}/3" "format wav.scp" "${audio_format} ${speed_perturb_factors} ${test_sets}" "" "${data_stamps}/1"; then
        espnet_data 3
        finish "${data_stamps}/3"
    fi
fi
# The teacher's words as the training text, made by a copy of it in ${dumpdir}/labels
label() {
    local labels=${dumpdir}/labels train=${raw}/org/${train_set}
    rm -rf "${labels}"
    mkdir -p "${labels}/teacher/log"
    if ${hf_teacher}; then
        python3 -m distill.bin.adopt_teacher --model "${teacher}" --show_tokens > "${labels}/tokens.txt"
        python3 -m distill.bin.adopt_teacher --model "${teacher}" --token_list "${labels}/tokens.txt" \
            --output "${labels}/teacher"
    else
        for file in "${teacher}"/*.yaml "${teacher}"/*.pth; do ln -s "$(realpath "${file}")" "${labels}/teacher/"; done
    fi
    # shellcheck disable=SC2086
    python3 -m distill.bin.watch_jobs --logs "${labels}/teacher/log/decode.*.log" -- \
        ${decode_cmd} JOB=1:"${nj}" "${labels}/teacher/log/decode.JOB.log" \
        python3 -m distill.bin.decode --model "${labels}/teacher" --data_dirs "${train}" --job JOB --num_jobs "${nj}"
    # Where the teacher hears nothing there is nothing to teach; stage 4 drops those utterances.
    python3 -c 'import json, sys
for path in sys.argv[1:]:
    for row in map(json.loads, open(path, encoding="utf-8")):
        if row["text"]:
            print(row["utterance"], row["text"])' "${labels}/teacher/decode_full/${train_set}"/hyp.*.jsonl |
        LC_ALL=C sort > "${labels}/text"
    [ -s "${labels}/text" ] || fail "${teacher}: hears no word in ${train}; is it a recogniser of this language?"
    mv "${labels}/text" "${train}/text"
    log "stage 3: the teacher's words are the training text of $(wc -l < "${train}/text") utterances"
}
labelled=${data_stamps}/3
if ${unlabelled}; then
    labelled=${data_stamps}/3_text
    if wanted 3 && begin "${labelled}" "the teacher transcribes ${train_set}" "${teacher}" "" "${data_stamps}/3"; then
        label
        finish "${labelled}"
    fi
fi
if wanted 4; then
    if begin "${data_stamps}/4" "drop too long and too short" "${min_wav_duration} ${max_wav_duration}" "" "${labelled}"; then
        espnet_data 4
        finish "${data_stamps}/4"
    fi
fi
if wanted 5; then
    if [ "${token_type}" = phn ]; then
        if begin "${data_stamps}/5_phn" "phones" "${lexicon_options[*]} ${test_sets}" "" "${data_stamps}/4" \
            "${lexicon_files[@]}"; then
            texts=("${raw}/lm_train.txt")
            for set in ${train_set} ${valid_set} ${test_sets}; do texts+=("${raw}/${set}/text"); done
            python3 -m distill.bin.phone_tokens "${lexicon_options[@]}" --output "${token_dir}" --texts "${texts[@]}"
            finish "${data_stamps}/5_phn"
        fi
    elif begin "${data_stamps}/5_${token_type}" "token list" "${token_type} ${nbpe} ${teacher_tokens}" "" \
        "${data_stamps}/4"; then
        espnet_data 5
        if ${teacher_tokens}; then
            python3 -m distill.bin.adopt_teacher --model "${teacher}" --show_tokens > "${token_list}.teacher"
            mv "${token_list}.teacher" "${token_list}"
        fi
        python3 -m distill.bin.check_data --data "${raw}/${train_set}" "${raw}/${valid_set}" \
            --token_list "${token_list}" --token_type "${token_type}"
        finish "${data_stamps}/5_${token_type}"
    fi
fi
exec 8>&- # the data are there: others may use them
if wanted 6; then
    source=(--text "${raw}/${lm_text}" --order "${ngram_order}")
    if [ -n "${ngram_lm}" ]; then source=(--lm "${ngram_lm}"); fi
    if begin "${stamps}/6" "denominator graph" "${ngram_order}" "" "${source[1]}" "${token_list}"; then
        python3 -m distill.bin.make_graph "${source[@]}" --token_list "${token_list}" \
            --token_type "${token_type}" --bpemodel "${bpemodel}" --output "${graph}"
        finish "${stamps}/6"
    fi
fi

# ---------------------------------------------------------------- training
# ESPnet's trainer with this project's task; options given later win.
trainer=(
    python3 -m distill.bin.train
    --ngpu "${ngpu}" --seed "${seed}" --resume true --use_preprocessor true --cleaner none --g2p none
    --token_list "${token_list}" --token_type "${token_type}" --bpemodel "${bpemodel:-none}"
    --train_data_path_and_name_and_type "${raw}/${train_set}/wav.scp,speech,sound"
    --train_data_path_and_name_and_type "${raw}/${train_set}/${train_text},text,text"
    --valid_data_path_and_name_and_type "${raw}/${valid_set}/wav.scp,speech,sound"
    --valid_data_path_and_name_and_type "${raw}/${valid_set}/${train_text},text,text"
)

# Lengths of every utterance, for batching; one set of them serves every training.
collect_stats() {
    if begin "${stamps}/9" "collect statistics" "${token_type}" "${expdir}/stats" "${raw}/${train_set}/wav.scp" \
        "${raw}/${train_set}/${train_text}" "${raw}/${valid_set}/wav.scp" "${raw}/${valid_set}/${train_text}" \
        "${token_list}"; then
        mkdir -p "${expdir}/stats"
        "${trainer[@]}" --config "${teacher_config}" --output_dir "${expdir}/stats" --collect_stats true --ngpu 0 \
            --train_shape_file "${raw}/${train_set}/utt2num_samples" \
            --valid_shape_file "${raw}/${valid_set}/utt2num_samples" > "${expdir}/stats/stats.log" 2>&1 ||
            { tail -n 5 "${expdir}/stats/stats.log" >&2; exit 2; }
        finish "${stamps}/9"
    fi
}

# train NAME CONFIG SHAPES [options]: a training in EXPDIR/NAME on the utterances of SHAPES, that goes on from its last
# checkpoint, with a progress bar
train() {
    local output=${expdir}/$1 config=$2 log=${expdir}/$1/train.log shapes=$3
    shift 3
    mkdir -p "${output}"
    local run=(
        "${trainer[@]}" --config "${config}" --output_dir "${output}"
        --train_shape_file "${shapes}"
        --valid_shape_file "${expdir}/stats/valid/speech_shape"
        --distill_conf graph="${graph}" "$@"
    )
    if [ "${ngpu}" -gt 1 ] || [ "${cuda_cmd}" != run.pl ]; then
        local cmd="${cuda_cmd} --name ${output##*/}"
        if [ "${ngpu}" = 0 ]; then cmd+=" --num_threads ${threads}"; fi
        run=(
            python3 -m espnet2.bin.launch --cmd "${cmd}" --log "${log}" --ngpu "${ngpu}"
            --num_nodes "${num_nodes}" --init_file_prefix "${output}/.dist_init_" --multiprocessing_distributed true --
            env OMP_NUM_THREADS="${threads}" "${run[@]}"
        )
        log "training in ${output}, log in ${log}"
        "${run[@]}" || fail "${log}: the training failed; its end: $(tail -n 3 "${log}" | tr '\n' ' ')"
    else
        OMP_NUM_THREADS=${threads} python3 -m distill.bin.watch --log "${log}" -- "${run[@]}"
    fi
}

# Options that hand a training the stored targets of train and valid
stored_targets() {
    local part set scp
    for part in train valid; do
        if [ "${part}" = train ]; then set=${train_set}; else set=${valid_set}; fi
        for scp in "${targets}/${set}"/*.scp; do
            echo "--${part}_data_path_and_name_and_type" "${scp},teacher_$(basename "${scp}" .scp),kaldi_ark"
        done
    done
}

if wanted 7; then
    if ${hf_teacher}; then
        if begin "${stamps}/7" "adopt the teacher ${teacher}" "${teacher} ${token_type}" "${expdir}/teacher" \
            "${teacher}/config.json" "${token_list}"; then
            python3 -m distill.bin.adopt_teacher --model "${teacher}" --token_list "${token_list}" \
                --token_type "${token_type}" --output "${expdir}/teacher"
            finish "${stamps}/7"
        fi
    elif [ -n "${teacher}" ]; then
        if begin "${stamps}/7" "adopt the teacher ${teacher}" "${teacher}" "" "${teacher}/config.yaml"; then
            ln -sfn "$(realpath "${teacher}")" "${expdir}/teacher"
            finish "${stamps}/7"
        fi
    else
        collect_stats
        teacher_init=()
        inputs=("${teacher_config}" "${stamps}/6" "${stamps}/9")
        if [ -n "${teacher_init_config}" ]; then
            if begin "${stamps}/7_init" "train the teacher, first with ${teacher_init_config}" \
                "${seed} ${teacher_init_max_s}" "${expdir}/teacher_init" "${teacher_init_config}" "${stamps}/9"; then
                short=${shapes}
                if [ -n "${teacher_init_max_s}" ]; then
                    short=${expdir}/stats/train/speech_shape_short
                    awk -v most="${teacher_init_max_s}" '$2 <= 16000 * most' "${shapes}" > "${short}"
                    [ -s "${short}" ] || fail "--teacher_init_max_s ${teacher_init_max_s}: no utterance is that short"
                fi
                train teacher_init "${teacher_init_config}" "${short}"
                finish "${stamps}/7_init"
            fi
            teacher_init=(--init "${expdir}/teacher_init")
            inputs+=("${stamps}/7_init")
        fi
        if begin "${stamps}/7" "train the teacher with ${teacher_config}" "${seed}" "${expdir}/teacher" "${inputs[@]}"; then
            train teacher "${teacher_config}" "${shapes}" "${teacher_init[@]}"
            finish "${stamps}/7"
        fi
    fi
fi
if wanted 8; then
    if [ "${teacher_targets}" = online ]; then
        log "stage 8: skipped, as the teacher runs inside the trainer (--teacher_targets online)"
    elif ! ${extract_targets}; then
        log "stage 8: skipped, as the targets in ${targets} are taken (--targets)"
    else
        student_configs=("${student_full_config}")
        # In stage 11 the targets may be of another teacher.
        [ "${stage2_teacher}" = student_full ] || student_configs+=("${student_stream_config}")
        extract=(
            python3 -m distill.bin.extract_targets --teacher "${expdir}/teacher" --dtype "${target_dtype}"
            --student_config "${student_configs[@]}" --graph "${graph}" --num_jobs "${nj}"
        )
        # Of the students' configurations only what they want of the teacher matters.
        streams=$("${extract[@]}" --show_streams --wav_scp "${raw}/${train_set}/wav.scp" --output "${targets}/${train_set}")
        # What was lost or cut off since, or was made from audio that is another by now, is made again; --verify finds
        # other damage as well.
        for set in ${train_set} ${valid_set}; do
            [ ! -e "${stamps}/8" ] || "${extract[@]}" --check --wav_scp "${raw}/${set}/wav.scp" \
                --output "${targets}/${set}" || rm -f "${stamps}/8" "${stamps}/8.begun"
        done
    fi
    # Shards know what they were made from, so only those that are stale are made again, in place: there is seldom room
    # for two sets of targets.
    aside=
    if [ "${force_stage}" = 8 ]; then aside=${targets}; fi
    if ${extract_targets} && begin "${stamps}/8" "extract the teacher's targets" \
        "${target_dtype} ${streams}" "${aside}" "${stamps}/7" \
        "${raw}/${train_set}/wav.scp" "${raw}/${valid_set}/wav.scp"; then
        for set in ${train_set} ${valid_set}; do
            of_set=("${extract[@]}" --wav_scp "${raw}/${set}/wav.scp" --output "${targets}/${set}")
            "${of_set[@]}" --plan
            # shellcheck disable=SC2086
            python3 -m distill.bin.watch_jobs --logs "${targets}/${set}/log/extract.*.log" -- \
                ${train_cmd} JOB=1:"${nj}" "${targets}/${set}/log/extract.JOB.log" "${of_set[@]}" --job JOB
            "${of_set[@]}" --merge
        done
        finish "${stamps}/8"
    fi
fi
if wanted 9; then collect_stats; fi

teacher_options=(--teacher "${expdir}/teacher" --teacher_targets "${teacher_targets}")
teacher_inputs=("${stamps}/7")
if ${extract_targets}; then
    teacher_inputs+=("${stamps}/8")
elif [ "${teacher_targets}" = stored ]; then
    teacher_inputs+=("${targets}/${train_set}/manifest.json" "${targets}/${valid_set}/manifest.json")
fi
full_options=${student_full_args:+ ${student_full_args}}
stream_options=${student_stream_args:+ ${student_stream_args}}
read -r -a student_full_args <<< "${student_full_args}"
read -r -a student_stream_args <<< "${student_stream_args}"
# student_full_no_kd waits for no other student. On the CPU, where networks as small as these gain little from one more
# thread, it is trained beside them, each with half of the threads.
beside=
trap '[ -z "${beside}" ] || pkill -TERM -P "${beside}" || true' EXIT
train_beside() {
    log "training in ${expdir}/$1 as well, beside the students; progress in ${expdir}/$1/progress.log"
    mkdir -p "${expdir}/$1"
    threads=$((threads / 2))
    train "$@" 2> "${expdir}/$1/progress.log" &
    beside=$!
}
end_beside() {
    [ -n "${beside}" ] || return 0
    local name=student_full_no_kd
    if kill -0 "${beside}" 2> /dev/null; then log "waiting for ${name}"; fi
    tail -n 1 -f --pid="${beside}" "${expdir}/${name}/progress.log" >&2 || true
    wait "${beside}" || { beside=; exit 2; }
    beside=
    finish "${stamps}/10_no_kd"
}
if wanted 10; then
    if ${no_kd} && begin "${stamps}/10_no_kd" "the same student without a teacher" "${seed}${full_options}" \
        "${expdir}/student_full_no_kd" "${student_full_config}" "${stamps}/6" "${stamps}/9"; then
        without_teacher=(student_full_no_kd "${student_full_config}" "${shapes}" "${student_full_args[@]}"
            --distill_conf target=transcript)
        if [ "${ngpu}" = 0 ] && [ "${threads}" -gt 1 ]; then
            train_beside "${without_teacher[@]}"
        else
            train "${without_teacher[@]}"
            finish "${stamps}/10_no_kd"
        fi
    fi
    if begin "${stamps}/10" "distil teacher -> student_full" \
        "${seed} ${teacher_targets}${full_options}" "${expdir}/student_full" \
        "${student_full_config}" "${stamps}/6" "${stamps}/9" "${teacher_inputs[@]}"; then
        stored=()
        if [ "${teacher_targets}" = stored ]; then read -r -d '' -a stored < <(stored_targets) || true; fi
        train student_full "${student_full_config}" "${shapes}" "${teacher_options[@]}" "${stored[@]}" \
            "${student_full_args[@]}"
        finish "${stamps}/10"
    fi
fi
if wanted 11; then
    stage2=("${teacher_options[@]}")
    if [ "${stage2_teacher}" = both ]; then stage2+=(--second_teacher "${expdir}/student_full"); fi
    stored=()
    if [ "${stage2_teacher}" = student_full ]; then
        stage2=(--teacher "${expdir}/student_full" --teacher_targets online)
    elif [ "${teacher_targets}" = stored ]; then
        read -r -d '' -a stored < <(stored_targets) || true
    fi
    # distil_stream STAMP SYSTEM [options]: one streaming student, started from student_full
    distil_stream() {
        local stamp=$1 system=$2
        shift 2
        if begin "${stamps}/${stamp}" "distil student_full -> ${system}" \
            "${seed} ${stage2_teacher} ${teacher_targets}${stream_options}" \
            "${expdir}/${system}" "${student_stream_config}" "${stamps}/10" "${teacher_inputs[@]}"; then
            train "${system}" "${student_stream_config}" "${shapes}" --init "${expdir}/student_full" \
                "${stage2[@]}" "${stored[@]}" "${student_stream_args[@]}" "$@"
            finish "${stamps}/${stamp}"
        fi
    }
    distil_stream 11 student_stream
    for chunk in ${fixed_chunks}; do
        distil_stream "11_fixed${chunk}" "student_stream_fixed${chunk}" \
            --chunk_conf chunk_ms="${chunk}" --chunk_conf full_prob=0
    done
fi
end_beside

# ---------------------------------------------------------------- recognition
systems="teacher student_full"
if ${no_kd}; then systems+=" student_full_no_kd"; fi
systems+=" student_stream"
for chunk in ${fixed_chunks}; do systems+=" student_stream_fixed${chunk}"; done
test_dirs=()
for set in ${test_sets}; do test_dirs+=("${raw}/${set}"); done
trained_in() {
    case "$1" in
        teacher) echo "${stamps}/7" ;;
        student_full) echo "${stamps}/10" ;;
        student_full_no_kd) echo "${stamps}/10_no_kd" ;;
        student_stream) echo "${stamps}/11" ;;
        student_stream_fixed*) echo "${stamps}/11_fixed${1#student_stream_fixed}" ;;
    esac
}

# decode STAMP SYSTEM DECODER INPUT...: recognise the test sets at every latency. A changed model, language model or test
# set makes every hypothesis stale.
decode() {
    local stamp=$1 system=$2 decoder=$3 made="decode_*" chunks="" options="" scp
    shift 3
    local title="recognise the test sets with ${system}"
    case "${system}" in
        student_stream) chunks=${latencies} ;;
        student_stream_fixed*) chunks=${system#student_stream_fixed} ;;
    esac
    if [ "${decoder}" != greedy ]; then
        title+=", ${decoder}"
        made+="_${decoder}"
        options="--decoder ${decoder} --lm ${lm} --tuned ${expdir}/${system}/tuned.json ${decode_options}"
    fi
    local inputs=("$(trained_in "${system}")" "$@")
    if [ "${decoder}" = wfst ] && [ "${token_type}" = phn ]; then inputs+=("${token_dir}/lexicon.txt"); fi
    for scp in "${test_dirs[@]}"; do inputs+=("${scp}/wav.scp"); done
    if begin "${stamps}/${stamp}" "${title}" "${test_sets} ${chunks} ${nj}${options:+ ${options}}" "" "${inputs[@]}"; then
        # shellcheck disable=SC2086
        if ${stale}; then rm -rf "${expdir:?}/${system}"/${made}; fi
        mkdir -p "${expdir}/${system}/log"
        # shellcheck disable=SC2086
        python3 -m distill.bin.watch_jobs --logs "${expdir}/${system}/log/decode.*.log" -- \
            ${decode_cmd} JOB=1:"${nj}" "${expdir}/${system}/log/decode.JOB.log" \
            python3 -m distill.bin.decode --model "${expdir}/${system}" --data_dirs "${test_dirs[@]}" \
            --chunk_ms ${chunks} --job JOB --num_jobs "${nj}" ${options}
        finish "${stamps}/${stamp}"
    fi
}
# tune SYSTEM: weights of the language model, chosen on the validation set; of a streaming student at its middle latency
tune() {
    local system=$1 chunks=full
    case "${system}" in
        student_stream) chunks=${latencies} ;;
        student_stream_fixed*) chunks=${system#student_stream_fixed} ;;
    esac
    read -r -a chunks <<< "${chunks}"
    local chunk=${chunks[$(((${#chunks[@]} - 1) / 2))]}
    if begin "${stamps}/12_tune_${system}" "tune the language model's weight for ${system} on ${valid_set}" \
        "${lm_decoders} ${chunk} ${decode_options}" "" "$(trained_in "${system}")" "${lm}" \
        "${raw}/${valid_set}/wav.scp" "${raw}/${valid_set}/text"; then
        # shellcheck disable=SC2086
        python3 -m distill.bin.tune_decoding --model "${expdir}/${system}" --chunk_ms "${chunk}" \
            --data_dir "${raw}/${valid_set}" --decoder ${lm_decoders} --lm "${lm}" \
            --output "${expdir}/${system}/tuned.json" ${decode_options}
        finish "${stamps}/12_tune_${system}"
    fi
}

lm_decoders=
for decoder in ${decoders}; do
    if [ "${decoder}" != greedy ]; then lm_decoders+="${lm_decoders:+ }${decoder}"; fi
done
own_lm=false
if [ -n "${lm_decoders}" ] && [ -z "${lm}" ]; then
    own_lm=true
    lm=${expdir}/lm/words.arpa
fi
if wanted 12; then
    if ${own_lm} && begin "${stamps}/12_lm" "word n-gram of the training text" "${lm_order}" "" "${raw}/lm_train.txt"; then
        python3 -m distill.bin.make_lm --text "${raw}/lm_train.txt" --order "${lm_order}" --output "${lm}"
        finish "${stamps}/12_lm"
    fi
    for system in ${systems}; do
        case " ${decoders} " in *" greedy "*) decode "12_${system}" "${system}" greedy ;; esac
        if [ -n "${lm_decoders}" ]; then tune "${system}"; fi
        for decoder in ${lm_decoders}; do
            decode "12_${system}_${decoder}" "${system}" "${decoder}" "${lm}" "${expdir}/${system}/tuned.json"
        done
    done
fi
if wanted 13; then
    scoring_options=(--scoring "${scoring}")
    if [ -n "${bpemodel}" ]; then scoring_options+=(--bpemodel "${bpemodel}"); fi
    scored=(text)
    ref_tokens=()
    if [ "${token_type}" = phn ]; then scored+=(text.phn); fi
    inputs=()
    for system in ${systems}; do
        for decoder in ${decoders}; do
            if [ "${decoder}" = greedy ]; then suffix=; else suffix=_${decoder}; fi
            inputs+=("${stamps}/12_${system}${suffix}")
        done
    done
    for dir in "${test_dirs[@]}"; do inputs+=("${scored[@]/#/${dir}/}"); done
    if begin "${stamps}/13" "score" "${test_sets} ${scoring}" "" "${inputs[@]}"; then
        for set in ${test_sets}; do
            decode_dirs=()
            for system in ${systems}; do decode_dirs+=("${expdir}/${system}"/decode_*/"${set}"); done
            if [ "${token_type}" = phn ]; then ref_tokens=(--ref_tokens "${raw}/${set}/text.phn"); fi
            python3 -m distill.bin.score --ref "${raw}/${set}/text" --decode_dir "${decode_dirs[@]}" \
                "${scoring_options[@]}" "${ref_tokens[@]}"
        done
        recipe=$(realpath --relative-to="${DISTILL_ROOT}" .)
        python3 -m distill.bin.results --expdir "${expdir}" --test_sets "${test_sets}" --recipe "${recipe}"
        finish "${stamps}/13"
    fi
fi
if wanted 14; then
    set=${test_sets%% *}
    inputs=("${stamps}/7" "${stamps}/10" "${stamps}/11")
    export_options=()
    if [ -e "${stamps}/15" ]; then
        inputs+=("${stamps}/15")
        export_options=(--export "${expdir}/export")
    fi
    if begin "${stamps}/14" "latency of student_stream on ${set}, size and speed" "${set} ${latencies}" "" "${inputs[@]}"; then
        # shellcheck disable=SC2086
        python3 -m distill.bin.latency --model "${expdir}/student_stream" --teacher "${expdir}/teacher" \
            --data_dir "${raw}/${set}" --chunk_ms ${latencies//full/} --output "${expdir}/bench.json"
        # shellcheck disable=SC2086
        python3 -m distill.bin.speed --models "${expdir}"/{teacher,student_full,student_stream} "${export_options[@]}" \
            --data_dir "${raw}/${set}" --chunk_ms ${latencies//full/} --output "${expdir}/bench.json"
        finish "${stamps}/14"
    fi
fi
if wanted 15; then
    inputs=("${stamps}/11")
    for dir in "${test_dirs[@]}"; do inputs+=("${dir}/wav.scp" "${dir}/text"); done
    if begin "${stamps}/15" "export student_stream" "${export_chunks}" "${expdir}/export" "${inputs[@]}"; then
        # shellcheck disable=SC2086
        python3 -m distill.bin.export --model "${expdir}/student_stream" --data_dirs "${test_dirs[@]}" \
            --chunk_ms ${export_chunks} --output "${expdir}/export"
        finish "${stamps}/15"
    fi
fi
if wanted 16; then
    inputs=("${expdir}/results.json" "${stamps}/11")
    packed=(--model "${expdir}/student_stream" --results "${expdir}/results.json")
    if [ -e "${expdir}/bench.json" ]; then
        inputs+=("${expdir}/bench.json")
        packed+=(--bench "${expdir}/bench.json")
    fi
    if [ -e "${stamps}/15" ]; then
        inputs+=("${stamps}/15")
        packed+=(--export "${expdir}/export")
    fi
    if begin "${stamps}/16" "report page and packed model" "${pack_options}" "" "${inputs[@]}"; then
        python3 -m distill.bin.report --expdir "${expdir}" --data "${raw}" --valid_set "${valid_set}"
        # shellcheck disable=SC2086
        python3 -m distill.bin.pack "${packed[@]}" ${pack_options} --output "${expdir}/student_stream.zip"
        finish "${stamps}/16"
    fi
fi
log "finished stages ${stage} to ${stop_stage}$([ "${stop_stage}" -lt 13 ] || echo "; results are in ${expdir}/RESULTS.md")"
