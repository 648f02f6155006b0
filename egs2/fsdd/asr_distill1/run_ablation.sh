#!/usr/bin/env bash
# What each part of the method is worth: students that differ from the recipe's in one thing, with several seeds.
set -euo pipefail

# name | kind | targets, if not exp's | what differs | options of the training | options of run.sh
table="
default        | full   |            | the recipe's stage 1 | |
no_teacher     | no_kd  |            | transcripts alone, no teacher | |
hidden_only    | full   | hidden     | α = 0: hidden layers (and CTC) | --distill_conf alpha=0 |
logits_only    | full   |            | β = 0: logits (and CTC) | --distill_conf beta=0 |
mmi_only       | full   |            | β = 1: LF-MMI (and CTC) | --distill_conf beta=1 |
transcript     | full   |            | LF-MMI with the transcript | --distill_conf target=transcript |
posterior      | full   |            | LF-MMI with the teacher's posterior | --distill_conf target=posterior |
no_ctc         | full   |            | no CTC | --distill_conf weight_ctc=0 |
frame_kl       | full   |            | KL of frames for LF-MMI | --distill_conf target=frame_kl |
cosine         | full   | hidden     | α = 0.8, cosine for MSE on hidden layers | --distill_conf alpha=0.8 --distill_conf hidden_loss=cosine |
followup       | full   | hidden     | the same, KL of frames for LF-MMI, no MSE on logits (a follow-up's choice) | --distill_conf alpha=0.8 --distill_conf hidden_loss=cosine --distill_conf target=frame_kl --distill_conf beta=1 |
alpha_0.2      | full   | hidden     | α = 0.2 | --distill_conf alpha=0.2 |
alpha_0.5      | full   | hidden     | α = 0.5 | --distill_conf alpha=0.5 |
alpha_0.8      | full   | hidden     | α = 0.8: hidden layers as well | --distill_conf alpha=0.8 |
beta_0.2       | full   |            | β = 0.2 | --distill_conf beta=0.2 |
beta_0.5       | full   |            | β = 0.5 | --distill_conf beta=0.5 |
float16        | full   | float16    | α = 0.8, targets stored in float16 | --distill_conf alpha=0.8 |
compressed     | full   | compressed | α = 0.8, targets stored compressed | --distill_conf alpha=0.8 |
codebook       | full   | codebook   | α = 0.8, targets stored as codes, compared as what they stand for | --distill_conf alpha=0.8 |
codes          | full   | codebook   | α = 0.8, targets stored as codes, which are predicted | --distill_conf alpha=0.8 --distill_conf hidden_loss=codes |
frames_20      | full   |            | frames of 20 ms, a CNN of 64 channels, as many parameters | FRAMES_20 |
stream         | stream |            | the recipe's stage 2 | |
stream_sn      | stream |            | teacher S_N | | --stage2_teacher student_full
stream_both    | stream |            | teachers T and S_N | | --stage2_teacher both
stream_frames  | stream |            | frame by frame: stage 1's β, the teacher's posterior | --distill_conf beta=0.8 --distill_conf target=posterior |
stream_fixed   | stream |            | chunks of 480 ms only | --chunk_conf chunk_ms=480 --chunk_conf full_prob=0 |
no_bound       | stream |            | tokens as early as they like | --distill_conf token_delay_ms=null |
stream_bound   | stream |            | no token earlier than 80 ms after the teacher's | --distill_conf token_delay_ms=80 |
stream_20      | stream |            | frames of 20 ms, started from frames_20 | FRAMES_20 |
stream_direct  | direct |            | one stage from T, as many steps as both | --chunk_conf chunk_ms=[160,640] --chunk_conf hop=0.5 --chunk_conf full_prob=0.1 |
"
help_message="Usage: ./run_ablation.sh [--seeds \"0 1 2\"] [--conditions \"NAME ...\"] [options]

Every seed has a teacher of its own, in exp, exp_seed1, ... (trained first if it is not there), and all conditions are
students of it, in exp_ablation. What is done is skipped, what was cut off goes on. Ends in exp_ablation/ABLATION.md,
a table of all there is. Seeds can run side by side, each in a call of its own.

  --full_epochs N, --stream_epochs N   length of stages 1 and 2 in epochs, of 200 and 150 steps (default: 15 and 20, the recipe's)
  --one_teacher true   seed 0's teacher for all seeds (default: false); intervals are then over students alone
  --also \"FILE ...\"   ablation.json of other machines, which did other seeds or conditions: their scores join the table
  --threads N   of a training (default: 1)
Other options, the same for all, belong in run.sh.

Conditions (default: all)
$(awk -F ' *\\| *' 'NF > 1 { printf "  %-16s%s\n", $1, $4 }' <<< "${table}")"

seeds="0 1 2"
conditions=
full_epochs=15
stream_epochs=20
one_teacher=false
also=
threads=1

. "$(dirname "$(readlink -f path.sh)")/../../../local/options.sh"
. ./path.sh
[ $# -eq 0 ] || { echo "error: run_ablation.sh: unexpected argument '$1'; --help lists the options" >&2; exit 2; }
for name in ${conditions}; do
    grep -q "^${name} " <<< "${table}" || { echo "error: --conditions ${name}: --help lists them" >&2; exit 2; }
done

# evaluate MODEL [options of decode]: recognise and score test and test_unseen
evaluate() {
    local model=$1 set
    shift
    python3 -m distill.bin.decode --model "${model}" --data_dirs dump/raw/test dump/raw/test_unseen "$@"
    for set in test test_unseen; do
        python3 -m distill.bin.score --ref "dump/raw/${set}/text" --decode_dir "${model}"/decode_*/"${set}"
    done
}

mkdir -p exp_ablation
hidden=exp_ablation/hidden.yaml # of students that are compared with the teacher's layers, so that these are stored
python3 - conf/train_student_full.yaml << 'EOF' > "${hidden}"
import sys, yaml
with open(sys.argv[1]) as stream:
    config = yaml.safe_load(stream)
config["distill_conf"]["alpha"] = 0.8
yaml.safe_dump(config, sys.stdout)
EOF
frames_20="--network_conf front_end=cnn --network_conf front_end_conf.channels=[64,64,64,64,64,64,64]"
frames_20+=" --network_conf front_end_conf.freeze=false --network_conf kernel=31"

# borrow FROM EXPDIR "PARTS" "STAMPS": EXPDIR goes on from what FROM has, its directories PARTS and its STAMPS of stages
borrow() {
    local part
    mkdir -p "$2/.stages"
    for part in $3; do ln -sfn "$(realpath --relative-to="$2" "$1/${part}")" "$2/${part}"; done
    for part in $4; do cp "$1/.stages/${part}" "$2/.stages/"; done
}

for seed in ${seeds}; do
    base=exp teacher_seed=0
    if [ "${seed}" != 0 ] && [ "${one_teacher}" != true ]; then base=exp_seed${seed} teacher_seed=${seed}; fi
    common=(--threads "${threads}" --fixed_chunks "")
    mkdir -p "${base}"
    flock "${base}" ./run.sh "${common[@]}" --seed "${teacher_seed}" --expdir "${base}" --stop_stage 9
    default=exp_ablation/default_seed${seed}
    while IFS='|' read -r name kind store _ training options <&3; do
        name=${name// /} kind=${kind// /} store=${store// /}
        if [ -z "${name}" ] || { [ -n "${conditions}" ] && [[ " ${conditions} " != *" ${name} "* ]]; }; then continue; fi
        targets=dump/targets
        [ "${base}" = exp ] || targets+=_${base}
        if [ -n "${store}" ]; then # the teacher's hidden layers as well, stored once in this type for all who read them
            targets=dump/targets_${store}_of_${base}
            stored=exp_ablation/${store}_of_${base}
            borrow "${base}" "${stored}" "graph stats teacher" "6 7 9"
            flock "${stored}" ./run.sh "${common[@]}" --expdir "${stored}" --student_full_config "${hidden}" \
                --target_dtype "${store/hidden/float32}" --stage 8 --stop_stage 8
        fi
        expdir=exp_ablation/${name}_seed${seed} from=${base} epochs=${full_epochs} per_epoch=200 stage=10
        shared="graph stats teacher" stamps="6 7 9"
        case "${kind}" in
            no_kd) expdir=${default} ;;
            direct) epochs=$((full_epochs + stream_epochs * 150 / 200)) ;;
            stream) from=${default} epochs=${stream_epochs} per_epoch=150 stage=11 shared+=" student_full" stamps+=" 10" ;;
        esac
        if [ "${name}" = stream_20 ]; then from=exp_ablation/frames_20_seed${seed}; fi
        [ -e "${from}/.stages/${stamps##* }" ] || { echo "error: ${name}: needs the condition $(
            [ "${name}" = stream_20 ] && echo frames_20 || echo default) first" >&2; exit 2; }
        borrow "${from}" "${expdir}" "${shared}" "${stamps}"
        training="--max_epoch ${epochs} --scheduler_conf max_steps=$((epochs * per_epoch)) ${training/FRAMES_20/${frames_20}}"
        read -r -a options <<< "${options}"
        options+=(--targets "${targets}" --student_full_args "${training}" --student_stream_args "${training}"
            --no_kd "$([ "${kind}" = no_kd ] && echo true || echo false)")
        ./run.sh "${common[@]}" --seed "${seed}" --expdir "${expdir}" "${options[@]}" --stage "${stage}" --stop_stage "${stage}"
        case "${kind}" in
            no_kd) evaluate "${expdir}/student_full_no_kd" ;;
            stream) evaluate "${expdir}/student_stream" --chunk_ms 480 ;;
            direct) evaluate "${expdir}/student_full" --chunk_ms 480 ;;
            *) evaluate "${expdir}/student_full" ;;
        esac
    done 3<<< "${table}"
done
# shellcheck disable=SC2086
awk -F ' *\\| *' 'NF > 1 { print $1 "\t" $2 "\t" $4 }' <<< "${table}" |
    python3 -m distill.bin.ablation --expdir exp_ablation --test_sets "test test_unseen" \
        --also ${also} --note "${full_epochs} epochs of stage 1, of 200 steps, ${stream_epochs} of stage 2, of 150$(
            [ "${one_teacher}" = true ] && echo "; one teacher for all seeds")"
