# shellcheck shell=bash
# How jobs are run: on this machine (local), or by a scheduler. Choose by editing the next line or setting cmd_backend.
# Options of a scheduler (partition, account, memory) go into conf/slurm.conf, conf/queue.conf or conf/pbs.conf,
# in the format that Kaldi's slurm.pl, queue.pl and pbs.pl read.
cmd_backend=${cmd_backend:-local}

case "${cmd_backend}" in
    local) wrapper=run.pl ;;
    slurm) wrapper=slurm.pl ;;
    sge) wrapper=queue.pl ;;
    pbs) wrapper=pbs.pl ;;
    *)
        echo "error: cmd.sh: cmd_backend=${cmd_backend} is not local, slurm, sge or pbs" >&2
        exit 2
        ;;
esac
export train_cmd="${wrapper}"   # data preparation and extraction of targets
export cuda_cmd="${wrapper}"    # training
export decode_cmd="${wrapper}"  # recognition
