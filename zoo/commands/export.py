"""`zoo export`: write a checkpoint as safetensors, StableHLO, ONNX or OpenVINO."""

import argparse

from zoo.commands import add_allow_nonfinite, amount, require_writable, start_jax

#: File name suffix by format.
SUFFIXES = {"safetensors": ".safetensors", "stablehlo": ".stablehlo", "onnx": ".onnx", "openvino": ".xml"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="Folder or name of a checkpoint.")
    add(
        "--to",
        choices=SUFFIXES,
        required=True,
        help="Format: safetensors holds the weights only, the others the network too.",
    )
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="File to write (default: the checkpoint's name with the suffix of the format).",
    )
    add(
        "--keys",
        metavar="NAMES",
        help="Tensor names of safetensors: torchvision, timm, akamaster, keras or zoo (default: the first that fits).",
    )
    add_allow_nonfinite(parser)


def run(options: argparse.Namespace) -> int:
    start_jax()
    import os
    from pathlib import Path

    from zoo import export, loading

    if options.keys and options.to != "safetensors":
        raise ValueError(f"--keys {options.keys}: applies to --to safetensors only, not {options.to}")
    if options.keys and options.keys not in export.KEYS:
        raise ValueError(f"--keys {options.keys}: choose from {', '.join(export.KEYS)}")
    name = os.path.basename(os.path.abspath(options.checkpoint)).replace(":", "-")
    file = Path(options.output or f"{name}{SUFFIXES[options.to]}")
    require_writable(file, SUFFIXES[options.to])
    loaded = loading.load(options.checkpoint, allow_nonfinite=options.allow_nonfinite)
    details = ""
    if options.to == "safetensors":
        details = f", tensor names of {export.write_safetensors(loaded, file, options.keys)}"
    elif options.to == "stablehlo":
        until = export.write_stablehlo(loaded, file)
        details = f" (and its card, {file}.json); outputs match the network's; releases of JAX until {until} read it"
    elif options.to == "onnx":
        export.write_onnx(loaded, file)
        details = "; outputs match the network's"
    else:
        export.write_openvino(loaded, file)
        details = f" (and its weights, {file.with_suffix('.bin')}); outputs match the network's"
    pixels = export.write_preprocess(loaded, file)
    print(f"{file}: {loaded.card.model}, {amount(file.stat().st_size)}B{details}")
    print(f"{pixels}: its preprocessing, with NumPy and Pillow alone")
    return 0
