"""Images a second of prediction: this project against plain Flax, Keras on JAX and PyTorch, alternating in one run.

    python -m benchmarks.inference                                  # against plain Flax, all five models
    python -m benchmarks.inference lenet5 --peer torch=ENV/bin/python --peer torch-compile=ENV/bin/python

From one batch in memory to probabilities, float32, as `zoo predict` and `zoo eval` do it, batch norm folded; PyTorch in
channels_last and inference mode, compiled with frozen weights, which folds it too. Rounds, medians, ratios and memory
go to benchmarks/results/inference.json and .png. What it measures and how: race.py.
"""

from benchmarks.race import main

if __name__ == "__main__":
    main("inference", False, __doc__)
