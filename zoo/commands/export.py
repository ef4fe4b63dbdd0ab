"""`zoo export`: a checkpoint as safetensors, StableHLO or ONNX."""

import argparse

from zoo.commands import amount, require_writable, start_jax

#: form -> the ending of its files
FORMS = {"safetensors": ".safetensors", "stablehlo": ".stablehlo", "onnx": ".onnx"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="a checkpoint's folder or name")
    add("--to", choices=FORMS, required=True, help="the weights alone (safetensors), or the network with them")
    add("-o", "--output", metavar="FILE", help="default: the checkpoint's name with the form's ending")
    add(
        "--keys",
        metavar="WHOSE",
        help="safetensors: torchvision, timm, akamaster, keras or zoo (default: the first of them that has it)",
    )


def run(options: argparse.Namespace) -> int:
    start_jax()
    import os
    from pathlib import Path

    from zoo import api, export

    if options.keys and options.to != "safetensors":
        raise ValueError(f"--keys {options.keys}: names the tensors of safetensors; {options.to} has none")
    if options.keys and options.keys not in export.KEYS:
        raise ValueError(f"--keys {options.keys}: should be one of {', '.join(export.KEYS)}")
    name = os.path.basename(os.path.abspath(options.checkpoint)).replace(":", "-")
    file = Path(options.output or f"{name}{FORMS[options.to]}")
    require_writable(file, FORMS[options.to])
    loaded = api.load(options.checkpoint)
    about = ""
    if options.to == "safetensors":
        about = f", names of {export.write_safetensors(loaded, file, options.keys)}"
    elif options.to == "stablehlo":
        export.write_stablehlo(loaded, file)
        about = f" (and {file}.json, its card), compared with the network"
    else:
        export.write_onnx(loaded, file)
        about = ", compared with the network"
    print(f"{file}: {loaded.card.model}, {amount(file.stat().st_size)}B{about}")
    return 0
