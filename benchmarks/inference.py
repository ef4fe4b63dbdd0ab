"""Time prediction of this project, plain Flax, Keras on JAX and PyTorch, alternating in one run.

    python -m benchmarks.inference                                  # against plain Flax, all five models
    python -m benchmarks.inference lenet5 --peer torch=ENV/bin/python --peer torch-compile=ENV/bin/python

From one float32 batch in memory to probabilities, as `zoo predict` and `zoo eval` compute them, with batch norm
folded. PyTorch runs in channels_last and inference mode, or compiled with frozen weights, which also folds batch norm.
Rounds, medians, ratios and memory are written to benchmarks/results/inference.json and .png. The method is described
in race.py.
"""

from benchmarks.race import main

if __name__ == "__main__":
    main("inference", False, __doc__)
