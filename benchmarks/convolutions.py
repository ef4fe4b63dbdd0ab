"""Time convolutions as `zoo.models.cpu_kernels` computes them and as XLA does, alternating in one run.

    python -m benchmarks.convolutions

Prints a Markdown table, that of docs/performance.md: milliseconds forward, and forward and backward, of both; least of
the rounds. XLA's form is the plain `lax` convolution under the same compiler options.
"""

import argparse
import time
from collections.abc import Callable

import jax

from benchmarks.machine import hardware
from zoo.distributed.compile import compiler_options
from zoo.models.operations import conv2d, formulation

#: batch, height, width, input channels, output channels, kernel, stride, groups
CASES = (
    (8, 1, 1, 512, 512, (3, 3), 1, 1),
    (8, 2, 2, 512, 512, (3, 3), 1, 1),
    (32, 2, 2, 512, 512, (3, 3), 1, 1),
    (32, 2, 4, 256, 256, (3, 3), 1, 1),
    (32, 4, 4, 256, 512, (3, 3), 2, 1),
    (32, 4, 4, 64, 96, (5, 5), 1, 1),
    (8, 2, 2, 192, 192, (1, 7), 1, 1),
    (8, 3, 3, 512, 512, (3, 3), 1, 1),
    (1, 7, 7, 512, 512, (3, 3), 1, 1),
    (8, 7, 7, 512, 512, (3, 3), 1, 1),
    (1, 14, 14, 256, 256, (3, 3), 1, 1),
    (1, 19, 19, 728, 728, (3, 3), 1, 728),
    (8, 19, 19, 728, 728, (3, 3), 1, 728),
    (8, 74, 74, 128, 128, (3, 3), 1, 128),
    (8, 56, 56, 128, 128, (3, 3), 2, 128),
)


def compiled(how: str, backward: bool, x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> Callable:
    """Compile a convolution of (x, kernel), or its value and gradients; `how`: name of a formulation."""
    kh, kw = kernel.shape[:2]

    def forward(x, kernel):
        return conv2d(x, kernel, (stride, stride), ((kh // 2, kh // 2), (kw // 2, kw // 2)), groups)

    def both(x, kernel):
        value, pull = jax.vjp(forward, x, kernel)
        return value, pull(value)

    with formulation(how):
        jitted = jax.jit(both if backward else forward, compiler_options=compiler_options())
        return jitted.lower(x, kernel).compile()


def race(contenders: dict[str, Callable], args: tuple, rounds: int) -> dict[str, float]:
    """Return the least seconds of each contender; they take turns."""
    least = dict.fromkeys(contenders, float("inf"))
    for number in range(rounds + 1):  # the first is not counted
        for name, function in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            if number:
                least[name] = min(least[name], time.perf_counter() - start)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds (default: 7)")
    options = parser.parse_args()
    print(f"{hardware()}, jax {jax.__version__}\n")
    print("| batch, map, channels | kernel, stride, groups | forward: XLA, here, ms | with gradients: XLA, here |")
    print("|---|---|---|---|")
    for batch, height, width, channels, features, (kh, kw), stride, groups in CASES:
        x = jax.random.normal(jax.random.key(0), (batch, height, width, channels))
        kernel = jax.random.normal(jax.random.key(1), (kh, kw, channels // groups, features)) * 0.05
        cells = []
        for backward in (False, True):
            contenders = {how: compiled(how, backward, x, kernel, stride, groups) for how in ("plain", "cpu")}
            least = race(contenders, (x, kernel), options.rounds)
            cells.append(f"{least['plain'] * 1e3:.2f} / {least['cpu'] * 1e3:.2f}")
        about = f"{batch}, {height}x{width}, {channels} to {features} | {kh}x{kw}, {stride}, {groups}"
        print(f"| {about} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
