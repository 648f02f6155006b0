#!/usr/bin/env bash
# Teacher -> small student -> streaming student, stage by stage. Called by a recipe's run.sh, in its directory. A stage
# calls scripts of the project's top-level local/, which also work without a recipe; here are options and their order.
set -euo pipefail
template=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
steps=$(realpath "${template}/../../../local")
# shellcheck disable=SC2034  # options.sh prints it
help_message=$(cat "${template}/distill_help.txt")

# Defaults, in the order of distill_help.txt
before=$(compgen -v)
# shellcheck disable=SC2034  # stages.sh reads these
stage=1 stop_stage=13 force_stage='' check=false dry_run=false plan_options=''
train_set=train valid_set=valid test_sets="test" local_data_opts='' speed_perturb_factors='' audio_format=flac
min_wav_duration=0.1 max_wav_duration=20 allow_pipes=false unlabelled=false resample=false
token_type=bpe nbpe=500 lexicon='' lang_dir='' ngram_order=2 ngram_lm=''
teacher='' from_scratch='' teacher_tokens=false keep_teacher_tokens=false allow_bad_teacher=false
teacher_init='' teacher_init_config='' teacher_init_max_s='' teacher_config=conf/train_teacher.yaml teacher_args=''
teacher_targets=stored target_dtype=float32 targets=''
student='' student_full_config=conf/train_student_full.yaml student_stream_config=conf/train_student_stream.yaml
student_full_args='' student_stream_args='' stage2_teacher=teacher no_kd=true fixed_chunks=''
latencies="160 320 480 960" decoders='' lm='' lm_order=3 decode_options='' scoring=plain
export_chunks=480 pack_options=''
ngpu='' num_nodes=1 nj=4 threads=$(nproc) expdir=exp dumpdir=dump seed=0
mapfile -t names < <(compgen -v | grep -vxF "${before}"$'\nbefore\nPIPESTATUS') # of these options

. "${steps}/options.sh"
. "${steps}/stages.sh"
[ $# -eq 0 ] || fail "run.sh: unexpected argument '$1'; --help lists the options"
. ./path.sh; . ./cmd.sh
gpus=$(gpus_here) ngpu=${ngpu:-${gpus}}
if [ -n "${from_scratch}" ]; then
    sizes=$(realpath --relative-to=. "${steps}/../conf/from_scratch/${from_scratch/#[!m]*/small}")
    student='' teacher_init_max_s=${teacher_init_max_s:-auto}
    for name in teacher_init teacher student_full student_stream; do
        config=${name}_config # what the user chose stays
        case "${!config}" in '' | "conf/train_${name}.yaml") printf -v "${config}" '%s' "${sizes}/train_${name}.yaml" ;; esac
    done
fi
if [ -n "${teacher_init}" ]; then teacher_init_config='' teacher_init_max_s=''; fi
for name in "${names[@]}" gpus cuda_cmd; do values+=("${name}=${!name}"); done
python3 -m distill.bin.check_recipe "${values[@]}" || exit 2; if ${check}; then exit 0; fi

# ---------------------------------------------------------------- options that depend on each other
phones=false ref_tokens='' bpemodel='' vocab='' token_dir=data/token_list/${token_type}
train_text=text lm_text=lm_train.txt lexicon_option=() lexicon_files=() spelling=()
if [ "${token_type}" = bpe ]; then
    token_dir=data/token_list/bpe_unigram${nbpe} bpemodel=${token_dir}/bpe.model vocab=${nbpe}
elif [ "${token_type}" = phn ]; then
    phones=true ref_tokens=text.phn train_text=text.phn lm_text=lm_train.txt.phn decoders=${decoders:-greedy wfst}
    if [ -n "${lexicon}" ]; then lexicon_option=(--lexicon "${lexicon}") lexicon_files=("${lexicon}"); fi
    if [ -n "${lang_dir}" ]; then
        lexicon_option+=(--lang_dir "${lang_dir}") lexicon_files=("${lang_dir}"/phones{,/align_lexicon}.txt)
    fi
    spelling=(--lexicon "${token_dir}/lexicon.txt")
fi
token_list=${token_dir}/tokens.txt decoders=${decoders:-greedy} lm_decoders='' hf_teacher=false
for decoder in ${decoders}; do
    if [ "${decoder}" != greedy ]; then lm_decoders+="${lm_decoders:+ }${decoder}"; fi
done
if [ -n "${teacher}" ] && [ ! -e "${teacher}/config.yaml" ] && [ -e "${teacher}/config.json" ]; then hf_teacher=true; fi
if [ -n "${student}" ]; then
    merged=${expdir}/conf
    if ${dry_run}; then merged=$(mktemp -d) && trap 'rm -rf "${merged}"' EXIT; fi
    for config in student_full_config student_stream_config; do
        python3 -m distill.bin.student_config --config "${!config}" --student "${student}" \
            --output "${merged}/${config}.yaml"
        printf -v "${config}" '%s' "${merged}/${config}.yaml"
    done
fi
if ${dry_run}; then
    exec "${steps}/plan.sh" --teacher "${teacher}" --teacher-init-config "${teacher_init_config}" --vocab "${vocab}" \
        --token-list "${token_list}" --utt2num-samples "${dumpdir}/raw/org/${train_set}/utt2num_samples" \
        --test-utt2num-samples "$(existing_files "${test_sets}" utt2num_samples "${dumpdir}/raw/" | paste -s -d ' ')" \
        --teacher-targets "${teacher_targets}" --target-dtype "${target_dtype}" --ngpu $((ngpu * num_nodes)) \
        --latencies "$(wc -w <<< "${latencies}")" --no-kd "${no_kd}" --plan-options "${plan_options}" \
        "${teacher_config}" "${student_full_config}" "${student_stream_config}"
fi
jobs=(--nj "${nj}" --ngpu $((ngpu * num_nodes))) # of extraction and recognition: with GPUs one on each, by cuda_cmd
if [ "${ngpu}" != 0 ]; then train_cmd=${cuda_cmd} decode_cmd=${cuda_cmd}; fi
original_train_set=${train_set} raw=${dumpdir}/raw graph=${expdir}/graph/den.npz extract_targets=false
if [ -n "${speed_perturb_factors}" ]; then train_set=${train_set}_sp; fi
train_dir=${raw}/${train_set} valid_dir=${raw}/${valid_set} test_dirs=()
for set in ${test_sets}; do test_dirs+=("${raw}/${set}"); done
if [ "${teacher_targets}" = stored ] && [ -z "${targets}" ]; then
    extract_targets=true targets=${dumpdir}/targets; if [ "${expdir}" != exp ]; then targets+=_${expdir##*/}; fi
fi
stamps=${expdir}/.stages data_stamps=${dumpdir}/.stages
mkdir -p "${stamps}" "${data_stamps}"; lock "${expdir}" "${dumpdir}"
# ---------------------------------------------------------------- data
prepare_data() {
    local checks=(--resample "${resample}" --allow_pipes "${allow_pipes}")
    # shellcheck disable=SC2086
    CHECK_DATA_OPTIONS="${checks[*]} --unlabelled ${unlabelled}" local/data.sh ${local_data_opts} || exit 2
    "${steps}/check_data.sh" "${checks[@]}" --unlabelled "${unlabelled}" "data/${original_train_set}"
    "${steps}/check_data.sh" "${checks[@]}" "data/${valid_set}" "${test_dirs[@]/#"${raw}"/data}"
}
# ESPnet's own data stages, which know no phones and up to stage 4 need no tokens
espnet_data() {
    quietly "${dumpdir}/log/espnet_stage_$1.log" "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/asr.sh" \
        --stage "$1" --stop_stage "$1" --nj "${nj}" --ngpu 0 --dumpdir "${dumpdir}" --expdir "${expdir}" \
        --train_set "${original_train_set}" --valid_set "${valid_set}" --test_sets "${test_sets}" \
        --local_data_opts "${local_data_opts}" --speed_perturb_factors "${speed_perturb_factors}" \
        --audio_format "${audio_format}" --fs 16k --feats_type raw --lm_train_text \
        "$(if ${unlabelled}; then echo "${raw}/org/${train_set}"; else echo "data/${original_train_set}"; fi)/text" \
        --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}" \
        --token_type "${token_type/phn/word}" --nbpe "${nbpe}" --use_lm false --asr_config none "${@:2}"
}
make_tokens() {
    espnet_data 5
    if ${teacher_tokens}; then
        "${steps}/adopt_teacher.sh" --show-tokens true "${teacher}" > "${token_list}.new"; mv "${token_list}"{.new,}
    fi
    "${steps}/check_data.sh" --token-list "${token_list}" --token-type "${token_type}" "${train_dir}" "${valid_dir}"
}
# Tables of data directories among the options: what is corrected there is noticed; a new transcript formats no audio
mapfile -t tables < <(existing_files "${local_data_opts}" "wav.scp segments utt2spk")
how="${local_data_opts}$(if ${unlabelled}; then echo " (unlabelled)"; fi)"
if wanted 1; then
    mapfile -t texts < <(existing_files "${local_data_opts}" text)
    run_stage "${data_stamps}/1" "data preparation" "${how}" "" local/data.sh "${tables[@]}" "${texts[@]}" -- prepare_data
fi
if wanted 2 && [ -n "${speed_perturb_factors}" ]; then
    run_stage "${data_stamps}/2" "speed perturbation" "${speed_perturb_factors}" "" "${data_stamps}/1" -- espnet_data 2
fi
if wanted 3; then
    how="${audio_format} ${speed_perturb_factors} $(other_words "${local_data_opts}")"
    for sets in "${train_set} ${valid_set}" ${test_sets}; do # a further test set does not format the others again
        stamp=${data_stamps}/3 only=(--test_sets "${sets#"${train_set} "}")
        case "${sets}" in *" "*) ;; *) stamp+=_${sets} only+=(--skip_train true) ;; esac
        mapfile -t inputs < <(existing_files "${sets}" "wav.scp segments utt2spk" data/)
        run_stage "${stamp}" "format wav.scp of ${sets}" "${how}" "" local/data.sh "${inputs[@]}" -- espnet_data 3 "${only[@]}"
    done
    mapfile -t inputs < <(existing_files "${train_set} ${valid_set} ${test_sets}" text data/)
    run_stage "${data_stamps}/3_text" "transcripts" "" "" "${data_stamps}/3" "${inputs[@]}" -- take_texts "${raw}" \
        "${inputs[@]}"
    if ${unlabelled}; then
        run_stage "${data_stamps}/3_labels" "the teacher transcribes ${train_set}" "${teacher}" "${dumpdir}/labels" \
            "${data_stamps}/3" -- "${steps}/label.sh" --cmd "${decode_cmd}" "${jobs[@]}" "${raw}/org/${train_set}" \
            "${teacher}" "${dumpdir}/labels"
    fi
fi
if wanted 4; then
    run_stage "${data_stamps}/4" "drop too long and too short" "${min_wav_duration} ${max_wav_duration}" "" \
        "${data_stamps}/3_text" "${data_stamps}/3$(if ${unlabelled}; then echo _labels; fi)" -- espnet_data 4
    left_out "${raw}/org/${train_set}" "${train_dir}"
fi
if wanted 5 && ${phones}; then
    run_stage "${data_stamps}/5_phn" "phones" "${lexicon_option[*]} ${test_sets}" "" "${data_stamps}/4" \
        "${lexicon_files[@]}" -- "${steps}/phone_tokens.sh" "${lexicon_option[@]}" "${token_dir}" \
        "${raw}/lm_train.txt" "${train_dir}/text" "${valid_dir}/text" "${test_dirs[@]/%//text}"
elif wanted 5; then
    run_stage "${data_stamps}/5_${token_type}" "token list" "${token_type} ${nbpe} ${teacher_tokens}" "" \
        "${data_stamps}/4" -- make_tokens
fi
exec 8>&- # the data are there: others may use them
tokens=(--token-list "${token_list}" --token-type "${token_type}" --bpemodel "${bpemodel}")
if wanted 6; then
    lm_source=${ngram_lm:-${raw}/${lm_text}}
    run_stage "${stamps}/6" "denominator graph" "${ngram_order}" "" "${lm_source}" "${token_list}" -- \
        "${steps}/make_graph.sh" "${tokens[@]}" --order "${ngram_order}" --lm "${ngram_lm}" "${lm_source}" "${graph}"
fi

# ---------------------------------------------------------------- training
# Lengths of every utterance, for batching; one set of them serves every training.
collect_stats() {
    run_stage "${stamps}/9" "collect statistics" "" "${expdir}/stats" "${train_dir}/wav.scp" \
        "${train_dir}/${train_text}" "${valid_dir}/wav.scp" "${valid_dir}/${train_text}" "${token_list}" -- \
        "${steps}/collect_stats.sh" "${train_dir}" "${valid_dir}" "${expdir}/stats"
}
# train SYSTEM CONFIG [options of local/train.sh]
train() {
    "${steps}/train.sh" "${tokens[@]}" --train-text "${train_text}" --stats-dir "${expdir}/stats" --graph "${graph}" \
        --cmd "${cuda_cmd}" --ngpu "${ngpu}" --num-nodes "${num_nodes}" --threads "${threads}" --seed "${seed}" \
        "${@:3}" "$2" "${train_dir}" "${valid_dir}" "${expdir}/$1"
}
adopt() { "${steps}/adopt_teacher.sh" --token-list "${token_list}" --token-type "${token_type}" "$@"; }
if wanted 7 && [ -n "${teacher}" ]; then
    how=${teacher} output='' inputs=("${teacher}/config.yaml")
    if ${hf_teacher}; then
        how+=" ${token_type}$(if ${keep_teacher_tokens}; then echo ' own'; fi)" output=${expdir}/teacher inputs=("${teacher}/config.json" "${token_list}")
    fi
    run_stage "${stamps}/7" "adopt the teacher ${teacher}" "${how}" "${output}" "${inputs[@]}" -- \
        adopt --own-tokens "${keep_teacher_tokens}" "${teacher}" "${expdir}/teacher"
elif wanted 7; then
    collect_stats; init=() inputs=("${teacher_config}" "${stamps}/6" "${stamps}/9")
    if [ -n "${teacher_init}" ]; then
        run_stage "${stamps}/7_init" "begin with the teacher ${teacher_init}" "${teacher_init} ${token_type}" \
            "${expdir}/teacher_init" "${teacher_init}"/config.* "${token_list}" -- adopt "${teacher_init}" "${expdir}/teacher_init"
    elif [ -n "${teacher_init_config}" ]; then
        run_stage "${stamps}/7_init" "train the teacher, first with ${teacher_init_config}" \
            "${seed} ${teacher_init_max_s}${teacher_args:+ ${teacher_args}}" "${expdir}/teacher_init" \
            "${teacher_init_config}" "${stamps}/9" -- train teacher_init "${teacher_init_config}" \
            --max-seconds "${teacher_init_max_s}" --train-args "${teacher_args}"
    fi
    if [ -n "${teacher_init}${teacher_init_config}" ]; then init=(--init "${expdir}/teacher_init") inputs+=("${stamps}/7_init"); fi
    run_stage "${stamps}/7" "train the teacher with ${teacher_config}" "${seed}${teacher_args:+ ${teacher_args}}" \
        "${expdir}/teacher" "${inputs[@]}" -- train teacher "${teacher_config}" "${init[@]}" --train-args "${teacher_args}"
fi
if wanted 7; then
    run_stage "${stamps}/7_valid" "errors of the teacher on ${valid_set}" "${scoring} ${allow_bad_teacher}" "" \
        "${stamps}/7" "${valid_dir}/text" -- "${steps}/check_teacher.sh" --cmd "${decode_cmd}" "${jobs[@]}" \
        --scoring "${scoring}" --ref-tokens "${ref_tokens}" --allow "${allow_bad_teacher}" "${valid_dir}" \
        "${expdir}/teacher"
fi
# extract [options of local/extract_targets.sh]: targets of both sets
extract() {
    local set configs=${student_full_config} status=0
    # In stage 11 the targets may be of another teacher.
    [ "${stage2_teacher}" = student_full ] || configs+=" ${student_stream_config}"
    for set in ${train_set} ${valid_set}; do
        "${steps}/extract_targets.sh" --dtype "${target_dtype}" --student-configs "${configs}" --graph "${graph}" \
            --cmd "${train_cmd}" "${jobs[@]}" "$@" "${raw}/${set}" "${expdir}/teacher" "${targets}/${set}" || status=2
        if [ "${status}" = 2 ] && [ "${1:-}" != --check ]; then break; fi # both are checked, that both are mended
    done
    return "${status}"
}
if wanted 8 && ${extract_targets}; then
    streams=$(extract --show-streams true | sort -u)
    # Shards that are missing, damaged, or made from audio that has changed since are made again.
    [ ! -e "${stamps}/8" ] || extract --check true || rm -f "${stamps}/8" "${stamps}/8.begun"
    # Only stale shards are made again, in place: there is seldom room for two sets of targets.
    if [ "${force_stage}" = 8 ]; then aside=${targets}; else aside=; fi
    run_stage "${stamps}/8" "extract the teacher's targets" "${target_dtype} ${streams}" "${aside}" "${stamps}/7" \
        "${train_dir}/wav.scp" "${valid_dir}/wav.scp" -- extract
elif wanted 8; then
    log "stage 8: skipped, as the teacher runs in the trainer (--teacher_targets online) or its targets are given (--targets)"
fi
if wanted 9; then collect_stats; fi
from_teacher=(--teacher "${expdir}/teacher") teacher_inputs=("${stamps}/7")
if [ "${teacher_targets}" = stored ]; then
    from_teacher+=(--train-targets "${targets}/${train_set}" --valid-targets "${targets}/${valid_set}")
    made=("${targets}/${train_set}/manifest.json" "${targets}/${valid_set}/manifest.json")
    if ${extract_targets}; then made=("${stamps}/8"); fi
    teacher_inputs+=("${made[@]}")
fi
# On the CPU, where networks as small as these gain little from one more thread, student_full_no_kd, for which no other
# student waits, is trained beside the others, each with half of the threads. It too begins with the teacher's CNN.
if wanted 10 && ${no_kd} && begin "${stamps}/10_no_kd" "the same student without a teacher" \
    "${seed}${student_full_args:+ ${student_full_args}}" "${expdir}/student_full_no_kd" "${student_full_config}" \
    "${stamps}/6" "${stamps}/9" "${stamps}/7"; then
    no_kd_train=(train student_full_no_kd "${student_full_config}" --init "${expdir}/teacher"
        --train-args "${student_full_args} --distill_conf target=transcript")
    if [ "${ngpu}" = 0 ] && [ "${threads}" -gt 1 ]; then
        threads=$((threads / 2))
        start_beside "${stamps}/10_no_kd" "${expdir}/student_full_no_kd/progress.log" "${no_kd_train[@]}"
    else
        "${no_kd_train[@]}"
        finish "${stamps}/10_no_kd"
    fi
fi
if wanted 10; then
    run_stage "${stamps}/10" "distil teacher -> student_full" \
        "${seed} ${teacher_targets}${student_full_args:+ ${student_full_args}}" "${expdir}/student_full" \
        "${student_full_config}" "${stamps}/6" "${stamps}/9" "${teacher_inputs[@]}" -- \
        train student_full "${student_full_config}" "${from_teacher[@]}" --train-args "${student_full_args}"
fi
declare -A trained_by=([teacher]=7 [student_full]=10 [student_full_no_kd]=10_no_kd [student_stream]=11)
declare -A chunks_of=([student_stream]=${latencies}) fixed_args
streaming=(student_stream)
for chunk in ${fixed_chunks}; do
    name=student_stream_fixed${chunk}
    streaming+=("${name}") trained_by[${name}]=11_fixed${chunk} chunks_of[${name}]=${chunk}
    fixed_args[${name}]="--chunk_conf chunk_ms=${chunk} --chunk_conf full_prob=0"
done
if wanted 11; then
    from=("${from_teacher[@]}")
    if [ "${stage2_teacher}" = both ]; then from+=(--second-teacher "${expdir}/student_full"); fi
    if [ "${stage2_teacher}" = student_full ]; then from=(--teacher "${expdir}/student_full"); fi
    for system in "${streaming[@]}"; do
        run_stage "${stamps}/${trained_by[${system}]}" "distil student_full -> ${system}" \
            "${seed} ${stage2_teacher} ${teacher_targets}${student_stream_args:+ ${student_stream_args}}" \
            "${expdir}/${system}" "${student_stream_config}" "${stamps}/10" "${teacher_inputs[@]}" -- \
            train "${system}" "${student_stream_config}" --init "${expdir}/student_full" "${from[@]}" \
            --train-args "${student_stream_args} ${fixed_args[${system}]:-}"
    done
fi
wait_beside

# ---------------------------------------------------------------- recognition
systems=(teacher student_full)
if ${no_kd}; then systems+=(student_full_no_kd); fi
systems+=("${streaming[@]}")
words_lm=${lm:-${expdir}/lm/words.arpa} test_scps=("${test_dirs[@]/%//wav.scp}")
if wanted 12 && [ -n "${lm_decoders}" ] && [ -z "${lm}" ]; then
    run_stage "${stamps}/12_lm" "word n-gram of the training text" "${lm_order}" "" "${raw}/lm_train.txt" -- \
        "${steps}/make_lm.sh" --order "${lm_order}" "${raw}/lm_train.txt" "${words_lm}"
fi
for system in "${systems[@]}"; do
    wanted 12 || break
    model=${expdir}/${system} trained=${stamps}/${trained_by[${system}]} tuned=${expdir}/${system}/tuned.json
    read -r -a chunks <<< "${chunks_of[${system}]:-full}"
    middle=${chunks[$(((${#chunks[@]} - 1) / 2))]} # of a streaming student the weights are tuned at this latency
    if [ -n "${lm_decoders}" ]; then
        run_stage "${stamps}/12_tune_${system}" "tune the language model's weight for ${system} on ${valid_set}" \
            "${lm_decoders} ${middle} ${spelling[*]:+${spelling[*]} }${decode_options}" "" "${trained}" "${words_lm}" \
            "${valid_dir}/wav.scp" "${valid_dir}/text" -- "${steps}/tune.sh" --decoders "${lm_decoders}" --lm "${words_lm}" \
            --chunk-ms "${middle}" --decode-options "${spelling[*]} ${decode_options}" "${valid_dir}" "${model}" "${tuned}"
    fi
    for decoder in ${decoders}; do
        suffix=_${decoder} inputs=("${trained}" "${words_lm}" "${tuned}" "${spelling[@]:1}")
        options=(--decoder "${decoder}" --lm "${words_lm}" --tuned "${tuned}" "${spelling[@]}")
        if [ "${decoder}" = greedy ]; then suffix='' inputs=("${trained}") options=(); fi
        run_stage "${stamps}/12_${system}${suffix}" "recognise the test sets with ${system}${suffix/_/, }" \
            "${test_sets} ${chunks_of[${system}]:-}${options[*]:+ ${options[*]} ${decode_options}}" "" \
            "${inputs[@]}" "${test_scps[@]}" -- "${steps}/decode.sh" --cmd "${decode_cmd}" "${jobs[@]}" \
            --redo "$(if [ "${force_stage}" = 12 ]; then echo true; else echo false; fi)" --chunk-ms "${chunks[*]}" \
            "${options[@]}" --decode-options "${options:+${decode_options}}" "${test_dirs[*]}" "${model}" "${model}"
    done
done
score_all() {
    "${steps}/score.sh" --scoring "${scoring}" --bpemodel "${bpemodel}" --ref-tokens "${ref_tokens}" "${test_dirs[*]}" \
        "${systems[@]/#/${expdir}/}"
    "${steps}/results.sh" --test-sets "${test_sets}" --recipe "$(realpath --relative-to="${DISTILL_ROOT}" .)" \
        "${expdir}"
}
if wanted 13; then
    inputs=()
    for system in "${systems[@]}"; do
        for decoder in ${decoders}; do inputs+=("${stamps}/12_${system}${decoder/#/_}"); done
    done
    inputs=("${inputs[@]/%_greedy/}" "${test_dirs[@]/%//text}" ${ref_tokens:+"${test_dirs[@]/%//${ref_tokens}}"})
    run_stage "${stamps}/13" "score" "${test_sets} ${scoring}" "" "${inputs[@]}" -- score_all
fi
if wanted 14; then
    set=${test_sets%% *} inputs=("${stamps}/7" "${stamps}/10" "${stamps}/11") exported=
    if [ -e "${stamps}/15" ]; then inputs+=("${stamps}/15") exported=${expdir}/export; fi
    run_stage "${stamps}/14" "latency of student_stream on ${set}, size and speed" "${set} ${latencies}" "" \
        "${inputs[@]}" -- "${steps}/benchmark.sh" --chunk-ms "${latencies//full/}" --teacher "${expdir}/teacher" \
        --others "${expdir}/student_full" --export "${exported}" "${raw}/${set}" "${expdir}/student_stream" \
        "${expdir}/bench.json"
fi
if wanted 15; then
    run_stage "${stamps}/15" "export student_stream" "${export_chunks}" "${expdir}/export" "${stamps}/11" \
        "${test_scps[@]}" "${test_dirs[@]/%//text}" -- "${steps}/export.sh" --chunk-ms "${export_chunks}" \
        "${test_dirs[*]}" "${expdir}/student_stream" "${expdir}/export"
fi
report_and_pack() {
    "${steps}/report.sh" --valid-set "${valid_set}" "${raw}" "${expdir}"
    "${steps}/pack.sh" --results "${expdir}/results.json" --bench "$1" --export "$2" --pack-options "${pack_options}" \
        "${expdir}/student_stream" "${expdir}/student_stream.zip"
}
if wanted 16; then
    inputs=("${expdir}/results.json" "${stamps}/11") bench='' exported=''
    if [ -e "${expdir}/bench.json" ]; then bench=${expdir}/bench.json inputs+=("${expdir}/bench.json"); fi
    if [ -e "${stamps}/15" ]; then exported=${expdir}/export inputs+=("${stamps}/15"); fi
    run_stage "${stamps}/16" "report page and packed model" "${pack_options}" "" "${inputs[@]}" -- \
        report_and_pack "${bench}" "${exported}"
fi
summary "${expdir}"
