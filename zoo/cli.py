"""The `zoo` command: which commands there are, and one line for every mistake."""

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from zoo.commands import SIGNAL_EXIT, one_line
from zoo.commands.streams import leave, prepare_streams
from zoo.host_memory import retain_freed_memory

#: command -> (module of zoo.commands, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "train a model, or go on with a run"),
    "eval": ("evaluate", "every metric of a checkpoint on a split of a data set"),
    "predict": ("predict", "classify images with a checkpoint"),
    "features": ("features", "what an endpoint of a checkpoint says of every image, as arrays"),
    "probe": ("probe", "a linear classifier on a checkpoint's features"),
    "data": ("data", "look at a data set: what is in it, what is wrong with it, what training makes of it"),
    "list": ("list", "the models by family, the recipes, or the known weights"),
    "info": ("info", "a model's layers, or a checkpoint's card"),
    "import": ("import_weights", "a weight file of another project as a checkpoint"),
    "export": ("export", "a checkpoint as safetensors, StableHLO or ONNX"),
    "devices": ("devices", "what there is to compute with, and what a training would use"),
    "launch": ("launch", "a training as several processes on this machine"),
    "verify": ("verify", "every file and leaf of a checkpoint against its hashes"),
}

#: Those that compute for long: they keep the memory that a step frees for the next.
KEEPING_MEMORY = ("train", "eval", "features", "probe")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and that takes no abbreviations: they would not stay unique."""

    def __init__(self, **about: Any):
        super().__init__(**about, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_with_nearest(self, message)}\n")


def _with_nearest(parser: argparse.ArgumentParser, message: str) -> str:
    if message.startswith("unrecognized arguments: "):
        word = message.split(": ", 1)[1].split()[0]
        near = difflib.get_close_matches(word, parser._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; `{parser.prog} --help` lists them"
        return f"there is no option {word!r}{hint}"
    if message.startswith("argument COMMAND: invalid choice: "):
        word = message.split("'")[1]
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        return f"there is no command {word!r}; " + (f"did you mean {near[0]}?" if near else f"{', '.join(COMMANDS)}")
    return message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. A user's mistake is one line on stderr and code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="zoo", description="LeNet, AlexNet, Inception and residual networks in JAX.")
    from zoo import __version__

    parser.add_argument("--version", action="version", version=f"zoo {__version__}")
    if words and words[0] in KEEPING_MEMORY:
        retain_freed_memory()
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        if words[:1] == [name]:  # only what is asked for is imported
            command = importlib.import_module(f"zoo.commands.{module}")
            command.add_arguments(sub)
            sub.set_defaults(run=command.run)
    if not words:
        parser.print_help()
        return 0
    options, unknown = parser.parse_known_args(words)
    if options.command is None:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}" if unknown else "no command is given")
    if unknown:
        subparsers.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    options.words = words
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ZOO_TRACEBACK"):
            raise
        print(f"zoo {options.command}: {one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or os.environ.get("ZOO_TRACEBACK"):
            raise
        what = "the memory does not suffice; try a smaller --batch-size or --micro-batch N, which accumulates"
        print(f"zoo {options.command}: {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return SIGNAL_EXIT + 2


def run(arguments: Sequence[str] | None = None) -> None:
    """The program: `main`, and an end that waits for nobody where it failed."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    prepare_streams(persistent=words[:1] == ["train"])
    try:
        code = main(arguments)
    except KeyboardInterrupt:  # while modules are imported
        code = SIGNAL_EXIT + 2
    except Exception:
        if not _one_of_several():
            raise
        traceback.print_exc()
        code = 1
    if code >= SIGNAL_EXIT or (code and _one_of_several()):
        # Leaving as usual, JAX would wait minutes for other processes, and a second signal could end in a traceback.
        leave(code)
    sys.exit(code)


def _one_of_several() -> bool:
    processes = sys.modules.get("zoo.distributed.processes")
    return processes is not None and processes.is_multiprocess()


if __name__ == "__main__":
    run()
