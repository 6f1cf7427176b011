#!/bin/bash
# sbatch accelerate_configs/slurm.sh recipes/stage2_1b.yaml [section.key=value ...]
#SBATCH --job-name=janus
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --output=%x-%j.out
#SBATCH --requeue
# A requeued job goes on where it stopped: the paper's recipes have resume_from_checkpoint: auto.
set -euo pipefail

GPUS=${SLURM_GPUS_ON_NODE:-8}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD GPUS OMP_NUM_THREADS=8

# One launcher per node; SLURM_PROCID is known only inside srun, which does not take --cpus-per-task over from sbatch.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
    accelerate launch --config_file accelerate_configs/multi_node.yaml \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" \
        --machine_rank "$SLURM_PROCID" --main_process_ip "$HEAD" --main_process_port 29500 \
        -m janus_hf_cli train "$@"' bash "$@" "training.num_processes=$((SLURM_NNODES * GPUS))"
