"""`zoo launch --processes N -- train …`: run training as several processes on this machine."""

import argparse

from zoo.commands import count

COMMANDS = ("train", "devices")  # commands that can be launched


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-n", "--processes", metavar="N", type=count, required=True, help="Number of processes to start.")
    add(
        "command_words",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="Command to start: -- train …, or -- devices.",
    )


def run(options: argparse.Namespace) -> int:
    from zoo.distributed import environments
    from zoo.distributed.launch import launch

    words = options.command_words
    command = words[1:] if words[:1] == ["--"] else words
    if options.processes < 1:
        raise ValueError("--processes 0: must be at least 1")
    if not command:
        raise ValueError("write the command to start after --: zoo launch --processes 2 -- train --model lenet5")
    if command[0] not in COMMANDS:
        raise ValueError(f"{command[0]}: only {' and '.join(COMMANDS)} can be launched; run it without `zoo launch`")
    group = environments.detect()
    if group is not None and group.started and not group.is_single:
        raise ValueError(
            f"{group}: each of its tasks would start {options.processes} processes of its own; start the command "
            "without `zoo launch`, or `zoo launch` as a single task (ZOO_COORDINATOR=none says that this is one)"
        )
    return launch(command, options.processes)
