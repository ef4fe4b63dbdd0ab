"""`python train.py …` is `zoo train …`."""

import sys

from zoo.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
