# shellcheck shell=bash
# What the batch scripts share. They source it from the folder they were submitted from, where Slurm starts them.

# An array's task has a name of its own: `scontrol requeue` with its number alone may take the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

if ((${SLURM_GPUS_ON_NODE:-$SLURM_NTASKS_PER_NODE} != SLURM_NTASKS_PER_NODE)); then
    echo "--ntasks-per-node=$SLURM_NTASKS_PER_NODE is not the $SLURM_GPUS_ON_NODE GPUs of a node: one rank drives one" \
        "GPU, so make the numbers equal in the block at the top of the batch script" >&2
    exit 2
fi

if ! python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    echo "$(type -p python || echo python) has no torch: activate your environment in the block at the top of the batch" \
        "script" >&2
    exit 2
fi

# A job that is requeued with fewer nodes keeps the number of tasks that it was submitted with.
export SLURM_NTASKS=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE))

# Where the ranks meet: this script runs on the first node, as rank 0 does. A node's name need not be a host's.
MASTER_ADDR=$(scontrol show node --oneliner "$SLURMD_NODENAME" | sed 's/.* NodeAddr=\([^ ]*\) .*/\1/')
MASTER_PORT=$(python -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])')
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

ulimit -c 0 # a rank that NCCL aborts would leave all its memory in a file

# A SIGTERM to this script waits until srun has ended, so that the log gets everything the ranks print before they exit.
trap : TERM

# ranks PROGRAM [FLAG...]: one process per task. Each sees its node's GPUs and takes the one of its local rank.
# If one rank exits, the others exit by themselves. srun must not kill them, because they may still be writing. And if a
# node is lost, srun must not end before Slurm has noticed the loss, because only then does Slurm requeue the job.
ranks() {
    # shellcheck disable=SC2016  # the variables are the task's
    srun --cpus-per-task="$OMP_NUM_THREADS" --gpu-bind=none --wait=0 --kill-on-bad-exit=0 bash -c '
        export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
        export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
        exec python "$@"' ranks "$@"
}

# newest_checkpoint RUN: its name, or `step-*` where there is none.
newest_checkpoint() {
    local checkpoints=("$1"/checkpoints/step-*)
    basename "${checkpoints[-1]}"
}

# asking COMMAND...: a command of Slurm's, again if Slurm does not answer for a moment.
asking() {
    local try
    for try in {1..5}; do
        "$@" && return
        ((try == 5)) || sleep 3
    done
    return 1
}

# train [FLAG...]: train, or go on, and exit: with 75 where asked to stop; then the job is back in the queue, unless it
# was cancelled or the last two times made no new checkpoint.
train() {
    local folder=runs/slurm-$job flag previous='' status=0 state before newest idle
    for flag in "$@"; do
        if [[ $previous == --output[-_]dir ]]; then
            folder=$flag
        elif [[ $flag == --output[-_]dir=* ]]; then
            folder=${flag#*=}
        fi
        previous=$flag
    done
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} && $folder != "runs/slurm-$job" ]]; then
        echo "--output-dir $folder would be shared by all tasks of the array: leave it out" >&2
        exit 2
    fi
    mkdir -p "$folder"
    # A job may have been requeued before it came to this line.
    if ((${SLURM_RESTART_COUNT:-0} == 0)) || [[ ! -s $folder/slurm_progress ]]; then
        echo "$(newest_checkpoint "$folder") 0" >"$folder/slurm_progress"
    fi

    ranks train.py --output-dir "$folder" --wandb offline "$@" --resume || status=$?
    # 138 and 143 are SIGUSR1 and SIGTERM that came while the program was starting.
    if [[ $status != @(75|138|143) ]]; then
        exit "$status"
    fi
    local again="submit the same with --output-dir $folder to resume"
    if ! state=$(asking squeue --noheader --jobs="$job" --format=%T); then
        echo "job $job: stopped on request, but not requeued, because squeue failed: $again" >&2
        exit 75
    fi
    if [[ $state != RUNNING ]]; then
        exit 75 # cancelled, or Slurm requeues it
    fi
    read -r before idle <"$folder/slurm_progress"
    newest=$(newest_checkpoint "$folder")
    if [[ $newest == "$before" ]]; then
        idle=$((idle + 1))
    else
        idle=0
    fi
    echo "$newest $idle" >"$folder/slurm_progress"
    if ((idle >= 2)); then
        echo "job $job: stopped twice in a row without a new checkpoint, so it is not requeued" >&2
        exit 75
    fi
    echo "job $job: stopped on request and requeued"
    asking scontrol requeue "$job" || echo "job $job: could not be requeued: $again" >&2
    exit 75
}
