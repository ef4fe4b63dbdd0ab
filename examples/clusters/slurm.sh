#!/bin/bash
# Submit with: sbatch slurm.sh
#SBATCH --job-name=zoo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# A task per GPU. Two minutes before the time limit, and when the job is preempted, the tasks save and end with 75.
srun --kill-on-bad-exit=1 python -m zoo.cli train --model resnet50 --data /shared/photos --batch-size 1024 \
  --workdir "/shared/runs/$SLURM_JOB_NAME"
code=$?

# Clusters with RequeueExit=75 in slurm.conf requeue by themselves.
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
