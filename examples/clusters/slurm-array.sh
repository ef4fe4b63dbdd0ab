#!/bin/bash
# Five seeds, two at a time, each on one GPU. Submit with: sbatch slurm-array.sh
#SBATCH --job-name=seeds
#SBATCH --array=0-4%2
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.out

srun python -m zoo.cli train --model resnet50 --data /shared/photos --seed "$SLURM_ARRAY_TASK_ID" \
  --workdir "/shared/runs/seed-$SLURM_ARRAY_TASK_ID"
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
