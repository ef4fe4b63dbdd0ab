"""Training steps a second: this project against plain Flax, Keras on JAX and PyTorch, alternating in one run.

    python -m benchmarks.training                                   # against plain Flax, all five models
    python -m benchmarks.training lenet5 --peer torch=ENV/bin/python --peer torch-compile=ENV/bin/python
    python -m benchmarks.training resnet50 --peer keras=ENV/bin/python --rounds 7

Forward, backward and update of SGD with momentum on one batch in memory, float32; PyTorch in channels_last. Everyone
has the same network without auxiliary heads (Keras's own ResNet-50 has biases in its convolutions besides). Rounds,
medians, ratios and memory go to benchmarks/results/training.json and .png. What it measures and how: race.py.
"""

from benchmarks.race import main

if __name__ == "__main__":
    main("training", True, __doc__)
