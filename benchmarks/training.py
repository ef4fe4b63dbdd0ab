"""Time training steps of this project, plain Flax, Keras on JAX and PyTorch, alternating in one run.

    python -m benchmarks.training                                   # against plain Flax, all five models
    python -m benchmarks.training lenet5 --peer torch=ENV/bin/python --peer torch-compile=ENV/bin/python
    python -m benchmarks.training resnet50 --peer keras=ENV/bin/python --rounds 7

A step is forward, backward and update of SGD with momentum on one float32 batch in memory; PyTorch in channels_last.
All have the same network without auxiliary heads (Keras's own ResNet-50 also has biases in its convolutions). Rounds,
medians, ratios and memory are written to benchmarks/results/training.json and .png. The method is described in
race.py.
"""

from benchmarks.race import main

if __name__ == "__main__":
    main("training", True, __doc__)
