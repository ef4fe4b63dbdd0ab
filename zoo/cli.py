"""The `zoo` command: the table of commands, and one line on stderr for every mistake of the user."""

import argparse
import gc
import importlib
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from zoo.commands import SIGNAL_EXIT
from zoo.commands.interruption import tell_others
from zoo.commands.streams import end_on_signal, leave, prepare_streams
from zoo.host_memory import retain_freed_memory
from zoo.suggest import did_you_mean
from zoo.text import error_line, escape, one_line, shorten_words

#: command -> (module in zoo.commands, help text)
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "Train a model, or resume a run."),
    "eval": ("evaluate", "Evaluate a checkpoint on a split of a data set."),
    "predict": ("predict", "Classify images with a checkpoint."),
    "features": ("features", "Save a layer's activations for every image."),
    "probe": ("probe", "Train a linear classifier on a checkpoint's features."),
    "show": ("show", "Draw a checkpoint's filters, its view of an image, or the features of a data set."),
    "report": ("report", "Write a page about a run or a checkpoint: curves, mistakes, calibration, data."),
    "serve": ("serve", "Classify images on a page of this computer: drop a file and see where the network looks."),
    "compare": ("compare", "Show what differs between runs, and what came of it."),
    "data": ("data", "Inspect a data set: classes, sizes, faults, duplicates and augmentation."),
    "lr-find": ("lr_find", "Suggest a learning rate by a short training in which it grows."),
    "sweep": ("sweep", "Train over a grid, or random draws, of recipe fields and seeds."),
    "list": ("list", "List the models, recipes or pretrained weights."),
    "info": ("info", "Show a model's layers or a checkpoint's card."),
    "import": ("import_weights", "Convert a weight file of another project to a checkpoint."),
    "export": ("export", "Export a checkpoint to safetensors, StableHLO, ONNX or OpenVINO."),
    "push": ("push", "Upload a checkpoint to the Hugging Face Hub."),
    "devices": ("devices", "List the devices and show which of them training would use."),
    "launch": ("launch", "Run training as several processes on this machine."),
    "verify": ("verify", "Verify every file and array of a checkpoint against its hashes."),
}

#: Long-running commands, in which memory freed by one step is kept for the next.
KEEPING_MEMORY = ("train", "eval", "features", "probe", "lr-find", "sweep")

#: Objects that are created between two searches for unreachable ones. By default there are 700, and the searches take a
#: sixth of the time until the first prediction or step: importing and tracing create many objects, which stay.
GC_THRESHOLD = 300_000

#: Seconds in which the process that caused an error of communication is missed by the others.
CAUSE_SECONDS = 40.0

#: Names of other programs for commands, and those of the Python functions.
SYNONYMS = {
    "fit": "train", "finetune": "train", "fine-tune": "train", "resume": "train", "evaluate": "eval", "test": "eval",
    "val": "eval", "validate": "eval", "infer": "predict", "classify": "predict", "convert": "import", "models": "list",
    "check": "verify", "summary": "info", "explain": "show", "visualise": "show", "visualize": "show", "upload": "push",
}  # fmt: skip


#: Names of other programs for options.
OPTION_SYNONYMS = {
    "early-stopping": "--patience", "output": "--workdir", "output-dir": "--workdir", "out": "--workdir",
    "save-dir": "--workdir", "project": "--workdir", "weights": "--init", "pretrained": "--init", "dataset": "--data",
    "imgsz": "--image-size", "arch": "--model", "network": "--model", "batch": "--batch-size", "seeds": "--seed",
    "num-workers": "--workers", "cross-validation": "--folds", "kfold": "--folds", "optim": "--optimizer",
    "freeze-backbone": "--head-epochs",
}  # fmt: skip


#: What to do in place of options that other programs have, for commands that train.
TRAINING_ADVICE = {
    **dict.fromkeys(("resume", "resume-from", "auto-resume"), "the same command resumes a run"),
    **dict.fromkeys(("device", "gpu", "gpus", "cuda"), "`zoo devices` shows the devices that training uses"),
    **dict.fromkeys(("amp", "fp16", "half", "bf16"), "write --precision bfloat16"),
    **dict.fromkeys(
        ("val", "val-dir", "val-split", "valid-pct", "validation-split"),
        "a tenth is held out for validation, unless the data have a folder or a column of splits with val",
    ),
    "grid": "`zoo sweep --set FIELD=A,B` tries each value",
}


class Parser(argparse.ArgumentParser):
    """An argument parser with errors of one line and without abbreviated options, which new options would break."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {shorten_words(escape(_with_hint(self, message)))}\n")


def _with_hint(parser: argparse.ArgumentParser, message: str) -> str:
    """Return argparse's message, with the closest names in place of its list for an unknown option or command."""
    if message.startswith("unrecognized arguments: "):
        word = _first_word(message.split(": ", 1)[1])
        if not word.startswith("-"):
            name, _, value = word.partition("=")
            if value and f"--{name}" in parser._option_string_actions:
                return f"unexpected argument {word!r}; did you mean --{name} {shlex.quote(value)}?"
            option = _option_for(parser, word)
            hint = f"did you mean {option} {shlex.quote(word)}?" if option else f"write {_shortest_use(parser)}"
            return f"unexpected argument {word!r}; {hint}"
        hint = _other_option(parser, word) or did_you_mean(word, parser._option_string_actions)
        return f"unknown option {word!r}; {hint or f'see `{parser.prog} --help`'}"
    if message.startswith("argument COMMAND: invalid choice: "):
        word = message.split("'")[1]
        hint = f"did you mean {SYNONYMS[word]}?" if word in SYNONYMS else did_you_mean(word, COMMANDS)
        hint = hint or f"choose from {', '.join(COMMANDS)}"
        return f"unknown command {word!r}; {hint}"
    if choice := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
        option, word, known = choice.groups()
        names = re.findall(r"[\w.-]+", known)
        hint = did_you_mean(word, names) or f"choose from {', '.join(names)}"
        return f"{option} {word}: {hint}"
    if message.startswith("the following arguments are required: "):
        return f"{message}; write {_shortest_use(parser)}"
    return message


def _option_for(parser: argparse.ArgumentParser, word: str) -> str:
    """Return the option that takes a setting, image, data or file to write given without one; "" if there is none."""
    from zoo.data.sources.folders import IMAGE_SUFFIXES

    actions, suffix = parser._option_string_actions, os.path.splitext(word)[1].lower()
    kinds = {option: os.path.splitext(str(action.metavar or ""))[1] for option, action in actions.items()}
    if re.match(r"[a-z]\w*=", word) and "--set" in actions:
        return "--set"
    options = ["--image"] if suffix in IMAGE_SUFFIXES else ["--features"]
    options.append("--data")
    if suffix and kinds.get("-o") == suffix and (suffix in IMAGE_SUFFIXES or not os.path.exists(word)):
        options.insert(1, "-o")  # a file of the kind that is written; a single picture is no data set
    elif re.fullmatch(r"\.[a-z]\w*", suffix):  # such as net.onnx
        options.append("-o")
    return next((option for option in options if option in actions and kinds[option] in ("", suffix)), "")


def _other_option(parser: argparse.ArgumentParser, word: str) -> str:
    """Return what to write for an option that other programs have, or for a field that --set takes; "" if neither."""
    name, _, value = word.lstrip("-").partition("=")
    name = name.replace("_", "-").lower()
    option = OPTION_SYNONYMS.get(name, f"--{name}")
    if option != word and option in parser._option_string_actions:
        more = "; `zoo sweep --seeds` trains with several" if name == "seeds" else ""
        return f"did you mean {option}?{more}"
    if option == "--data" and any(action.dest == "data" for action in parser._actions):
        return f"write {_shortest_use(parser)}"
    if "--set" in parser._option_string_actions:
        if name in TRAINING_ADVICE:
            return TRAINING_ADVICE[name]
        from zoo.models import MODELS, defining_fields
        from zoo.training.settings import RECIPE_FIELDS

        field = name.replace("-", "_")
        if field in RECIPE_FIELDS or any(field in defining_fields(make()) for make in MODELS.values()):
            return f"write --set {field}={value or 'VALUE'}"
    return ""


def _memory_advice(parser: argparse.ArgumentParser) -> str:
    """Return what to change if the memory does not suffice, by the options that a command has."""
    ways = {
        "--batch-size": "lower --batch-size", "--micro-batch": "accumulate gradients with --micro-batch N",
        "--image-size": "lower --image-size",
    }  # fmt: skip
    known = [way for option, way in ways.items() if option in parser._option_string_actions]
    return ", or ".join(known) or "end other programs, or use a machine with more memory"


def _shortest_use(parser: argparse.ArgumentParser) -> str:
    """Return the shortest line that a command accepts: "zoo predict CKPT IMAGE|FOLDER, …"."""
    words, explanation = [], ""
    for action in parser._actions:
        if action.option_strings and action.required:
            words.append(f"{action.option_strings[0]} {action.metavar or '|'.join(action.choices or [action.dest])}")
        elif not action.option_strings and action.nargs not in ("?", "*"):
            words.append(str(action.metavar or action.dest))
    if "CKPT" in words:
        explanation = " (CKPT: a run, or a name such as lenet5-mnist; `zoo list --weights` has more)"
    return f"`{' '.join([parser.prog, *words])}`{explanation}"


def _first_word(line: str) -> str:
    """Return the first word of a command line; argparse's own lists of words are not quoted."""
    try:
        return shlex.split(line)[0]
    except ValueError:
        return line.split()[0]


def _are_exchanged(options: argparse.Namespace, unknown: Sequence[str]) -> bool:
    """Return True if a command that takes one checkpoint, first, was given it second."""
    from zoo.pretrained.names import names_checkpoint

    first = getattr(options, "checkpoint", None)
    try:
        return isinstance(first, str) and names_checkpoint(unknown[0]) and not names_checkpoint(first)
    except (OSError, RuntimeError):  # of a path such as ~nobody
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: the words after `zoo`; those of this process by default.

    Returns:
        The exit code: 0 on success, 2 after one line on stderr for a mistake of the user or a damaged file, 130 after
        Ctrl-C, and 70 or 75 for a run that can be resumed (docs/clusters.md).

    Raises:
        SystemExit: after --help, --version, and for arguments that cannot be parsed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in KEEPING_MEMORY:
        retain_freed_memory()
    parser, subparsers = _parsers(words)
    if not words:
        parser.print_help()
        return 0
    for word in words:
        if word.startswith("--") and word.endswith("=--"):  # Python before 3.13 reads an empty list
            subparsers.get(words[0], parser).error(f"{word}: '--' is not a value")
    options, unknown = parser.parse_known_args(words)
    if options.command is None:
        parser.error(
            f"unrecognized arguments: {shlex.join(unknown)}" if unknown else "a command is missing; see --help"
        )
    if unknown:
        sub = subparsers[options.command]
        option = _option_for(sub, options.checkpoint) if _are_exchanged(options, unknown) else ""
        if option:
            line = shlex.join(["zoo", options.command, unknown[0], option, options.checkpoint])
            sub.error(f"{options.checkpoint}: the checkpoint comes first: {line}")
        sub.error(f"unrecognized arguments: {shlex.join(unknown)}")
    options.words = words
    try:
        return options.run(options) or 0
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ZOO_TRACEBACK"):
            raise
        print(f"zoo {options.command}: {error_line(error)}", file=sys.stderr)
        tell_others(2, f"failed: {one_line(error_line(error))}")
        return 2
    except RuntimeError as error:
        known = (
            ("RESOURCE_EXHAUSTED", f"out of memory; {_memory_advice(subparsers[options.command])}"),
            ("determine home directory", "a path begins with ~ and the name of no user"),  # pathlib's expanduser
        )
        answer = next((answer for text, answer in known if text in str(error)), "")
        if not answer or os.environ.get("ZOO_TRACEBACK"):
            raise
        print(f"zoo {options.command}: {answer}", file=sys.stderr)
        tell_others(2, f"failed: {answer}")
        return 2
    except KeyboardInterrupt:
        return SIGNAL_EXIT + 2


def _parsers(words: Sequence[str]) -> tuple[Parser, dict[str, Any]]:
    """Return the parser and those of the commands. Only the command named first is imported and has its options."""
    from zoo import __version__

    parser = Parser(prog="zoo", description="LeNet, AlexNet, Inception and residual networks in JAX.")
    parser.add_argument("--version", action="version", version=f"zoo {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=text)
        if words[:1] == [name]:
            command = importlib.import_module(f"zoo.commands.{module}")
            command.add_arguments(sub)
            sub.set_defaults(run=command.run)
    return parser, subparsers.choices


def run(arguments: Sequence[str] | None = None) -> None:
    """Run `main` and exit. After a signal, or as one of several failed processes, exit without waiting for threads."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    gc.set_threshold(GC_THRESHOLD)
    prepare_streams(persistent=words[:1] in (["train"], ["sweep"]))
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on images that it reads all the same
    # JAX leaves half of an entry in its cache when the disk is full, and would say so at every start. It compiles anew.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    try:
        code = main(arguments)
        end_on_signal(code)
    except KeyboardInterrupt:  # while modules are imported
        code = SIGNAL_EXIT + 2
    except Exception as error:
        if not _is_multiprocess():
            raise
        _wait_for_cause(error)
        traceback.print_exc()
        tell_others(1, f"failed: {one_line(f'{type(error).__name__}: {error}')}")
        code = 1
    if code >= SIGNAL_EXIT or (code and _is_multiprocess()):
        # A regular exit would wait minutes in JAX for other processes, and a second signal could print a traceback.
        leave(code)
    gc.freeze()  # Python would search for unreachable objects before it ends, which takes 0.3 s after importing JAX
    sys.exit(code)


def _wait_for_cause(error: Exception) -> None:
    """Wait for the process that caused an error of communication to be named, which ends this one in its place."""
    watch = sys.modules.get("zoo.distributed.watch")
    if watch is not None and type(error).__module__.partition(".")[0] in ("jax", "jaxlib"):
        watch.cause_elsewhere(CAUSE_SECONDS)


def _is_multiprocess() -> bool:
    """Return True if this process is one of several. Does not import JAX."""
    processes = sys.modules.get("zoo.distributed.processes")
    return processes is not None and processes.is_multiprocess()


if __name__ == "__main__":
    run()
