"""`zoo export`: write a checkpoint as safetensors, StableHLO, ONNX or OpenVINO."""

import argparse

from zoo.commands import Output, add_allow_nonfinite, amount, start_jax, writing

#: File name suffix by format.
SUFFIXES = {"safetensors": ".safetensors", "stablehlo": ".stablehlo", "onnx": ".onnx", "openvino": ".xml"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
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
        help="File to write (default: the name of the checkpoint, or of its run, with the suffix of the format).",
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

    from zoo import export
    from zoo.training.run import BEST

    if options.keys and options.to != "safetensors":
        raise ValueError(f"--keys {options.keys}: applies to --to safetensors only, not {options.to}")
    if options.keys and options.keys not in export.KEYS:
        raise ValueError(f"--keys {options.keys}: choose from {', '.join(export.KEYS)}")
    parent, name = os.path.split(os.path.abspath(options.checkpoint))
    name = (os.path.basename(parent) or name if name == BEST else name).replace(":", "-")
    with writing(options.output or f"{name}{SUFFIXES[options.to]}", SUFFIXES[options.to]) as output:
        lines = _export(options, output)
    print("\n".join(lines))
    return 0


def _export(options: argparse.Namespace, output: Output) -> list[str]:
    """Write the file and what belongs to it; return lines on them."""
    from zoo import export, loading

    file = output.path
    export.require_companions(file)
    loaded = loading.load(options.checkpoint, allow_nonfinite=options.allow_nonfinite)
    details = ""
    if options.to == "safetensors":
        details = f", tensor names of {export.write_safetensors(loaded, file, options.keys)}"
    elif options.to == "stablehlo":
        until = export.write_stablehlo(loaded, file)
        card = f"{output.shown(file)}.json"
        details = f" (and its card, {card}); outputs match the network's; releases of JAX until {until} read it"
    elif options.to == "onnx":
        export.write_onnx(loaded, file)
        details = "; outputs match the network's"
    else:
        export.write_openvino(loaded, file)
        details = f" (and its weights, {output.shown(file.with_suffix('.bin'))}); outputs match the network's"
    pixels = export.write_preprocess(loaded, file)
    return [
        f"{output.shown(file)}: {loaded.card.model}, {amount(file.stat().st_size)}B{details}",
        f"{output.shown(pixels)}: its preprocessing, with NumPy and Pillow alone",
    ]
