#!/bin/bash
# Train on every worker of a TPU pod slice: tpu_vm.sh NAME ZONE. Repeat it to resume.
set -e
name=$1
zone=$2
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

on_all "test -d jax-model-zoo || git clone https://github.com/OWNER/jax-model-zoo"
on_all "cd jax-model-zoo && pip install -e . 'jax[tpu]'"
on_all "cd jax-model-zoo && python -m zoo.cli train --coordinator auto --model resnet50 \
  --data /shared/photos --batch-size 1024 --workdir /shared/runs/zoo"
