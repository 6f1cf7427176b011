#!/bin/bash
# sbatch accelerate_configs/slurm.sh recipes/stage2_1b.yaml [section.key=value ...]
#SBATCH --job-name=janus
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@900
# A job whose time is nearly over (15 minutes before: raise this if a checkpoint takes longer) saves a checkpoint and is
# requeued, and so is a job whose node failed. It goes on where it stopped: the paper's recipes have
# resume_from_checkpoint: auto.
set -uo pipefail

GPUS=${SLURM_GPUS_ON_NODE:-8}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD GPUS OMP_NUM_THREADS=8

# Wait for a child and return its status. A signal ends `wait` with a status above 128, also just before the child ends.
await() {
    local status
    while wait "$1"; status=$?; kill -0 "$1" 2>/dev/null; do :; done
    if [ "$status" -gt 128 ]; then wait "$1"; status=$?; fi
    return "$status"
}

# What runs on every node: one launcher, which starts a process per GPU. SLURM_PROCID is known only inside srun.
# The launcher would kill its processes 30 seconds after a SIGTERM of its own. So the warning, SIGUSR1, is sent as SIGTERM
# to these processes alone; they and the launcher ignore SIGUSR1, as everything does that a shell starts like this.
node() {
    trap '' USR1
    accelerate launch --config_file "${CONFIG:-accelerate_configs/multi_node.yaml}" \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" \
        --parallelism_config_dp_replicate_size "$SLURM_NNODES" --parallelism_config_dp_shard_size "$GPUS" \
        --machine_rank "$SLURM_PROCID" --main_process_ip "$HEAD" --main_process_port 29500 \
        -m janus_hf_cli train "$@" &
    local launcher=$!
    trap 'pkill -TERM -P "$launcher"' USR1
    await "$launcher"
}
export -f await node

# srun does not take --cpus-per-task over from sbatch.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c 'node "$@"' bash "$@" \
    "training.num_processes=$((SLURM_NNODES * GPUS))" &
RUN=$! WARNED=
trap 'WARNED=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
await "$RUN"; STATUS=$?

# A process that stops unfinished ends with 75, but its launcher with 1; a job that was warned and failed is unfinished.
if [ "$STATUS" -ne 0 ] && [ -n "$WARNED" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$STATUS"
