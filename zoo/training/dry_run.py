"""A dry run: shapes, parameters, memory and time of a plan, without training or writing anything."""

import time

import jax

from zoo.training.display import format_duration
from zoo.training.loop import compile_segment, has_several_sizes
from zoo.training.plan import Plan
from zoo.training.request import Say

#: Steps that are timed, after a first one that is not.
TIMED_STEPS = 3


def dry_run(plan: Plan, say: Say, workers: int | None = None) -> None:
    """Print the memory and time of the largest step, measured on a throw-away state.

    Args:
        plan: the run.
        say: called with each line.
        workers: threads that read data which is not kept in memory.
    """
    segment, state = plan.largest_step()
    if plan.precompiled and plan.precompiled[0] == segment:
        step = plan.precompiled[1]
    else:
        step = compile_segment(plan, segment, state, say)
    analysis = step.memory_analysis()
    if analysis is not None:
        activations = analysis.temp_size_in_bytes
        total = analysis.argument_size_in_bytes + activations + analysis.generated_code_size_in_bytes
        per_device = " per device" if plan.parallelism.devices > 1 else ""
        mib = 2**20
        say(f"Memory per step{per_device}: {total / mib:,.0f} MiB ({activations / mib:,.0f} MiB of activations)")
    batches = plan.batches(plan.total_steps - 1, workers)
    times = []
    for _ in range(TIMED_STEPS + 1):
        batch, start = next(batches), time.monotonic()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.monotonic() - start)
    seconds = min(times[1:])
    bound = "at most" if has_several_sizes(plan) else "about"
    say(
        f"Time per step: {1000 * seconds:,.0f} ms ({plan.batch_size / seconds:,.0f} images/s); training takes {bound} "
        f"{format_duration(seconds * plan.total_steps)}"
    )
    say("Dry run: nothing was trained or written")
