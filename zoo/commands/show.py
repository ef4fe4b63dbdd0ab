"""`zoo show`: draw what a checkpoint has learned, what it sees in an image, and the features of a data set."""

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.commands import count, counter, start_jax
from zoo.files import require_writable

#: option -> the options to which it belongs.
MODES_OF = {
    "target": ("image",), "stage": ("image",), "data": ("unit",), "data-dir": ("unit", "features"),
    "split": ("unit", "features"), "at": ("features",), "umap": ("features",), "limit": ("unit", "features"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--image", metavar="PHOTO", help="Draw the attribution maps and feature maps of this image.")
    mode.add_argument(
        "--unit", metavar="STAGE:N", help="Draw the images that excite a channel, unit or class, such as stage3:17."
    )
    mode.add_argument("--features", metavar="DATA", help="Draw the features of a data set by PCA and t-SNE.")
    parser.add_argument("--target", metavar="CLASS", help="Class to explain with --image (default: the predicted one).")
    parser.add_argument(
        "--stage", metavar="NAME", help="Stage of Grad-CAM with --image (default: the last one with positions)."
    )
    parser.add_argument("--data", metavar="DATA", help="Data set of --unit (default: the one it was trained on).")
    parser.add_argument("--data-dir", metavar="DIR", help="Folder of TensorFlow Datasets and Hugging Face datasets.")
    parser.add_argument("--split", metavar="NAME", default="", help="Split of --unit and --features (default: test).")
    parser.add_argument("--at", metavar="ENDPOINT", help="Endpoint of --features: a stage or features (default).")
    parser.add_argument("--umap", action="store_true", help="Draw --features by UMAP too (needs umap-learn).")
    parser.add_argument(
        "--limit", metavar="N", type=count, default=0, help="Use at most N records (default: 2,000 for --features)."
    )
    parser.add_argument("-o", "--output", metavar="FILE.png", required=True, help="Picture to write.")


def run(options: argparse.Namespace) -> int:
    require_writable(Path(options.output), ".png")
    for name, modes in MODES_OF.items():
        if getattr(options, name.replace("-", "_")) and all(getattr(options, mode) is None for mode in modes):
            raise ValueError(f"--{name} belongs to {' and '.join(f'--{mode}' for mode in modes)}")
    if options.umap:
        from zoo.analysis.embedding import require_umap

        require_umap()
    start_jax()
    from zoo import loading

    loaded = loading.load(options.checkpoint)
    if options.image is not None:
        show_image(loaded, options)
    elif options.unit is not None:
        show_unit(loaded, options)
    elif options.features is not None:
        show_features(loaded, options)
    else:
        show_filters(loaded, options)
    print(options.output)
    return 0


def show_filters(loaded: Any, options: argparse.Namespace) -> None:
    """Draw the filters of the first layer, and print the receptive field of every stage."""
    from zoo.analysis import figures
    from zoo.analysis.receptive import receptive_fields
    from zoo.analysis.visualise import first_layer_filters

    shape = loaded.card.preprocess.input_shape
    filters = first_layer_filters(loaded.model, loaded.variables, shape)
    size = "x".join(map(str, filters.shape[1:]))
    title = f"{options.checkpoint}: first layer, {len(filters)} filters of {size}"
    figures.draw_filters(filters, Path(options.output), title)
    print(title)
    print(f"{'stage':<20}receptive field")
    for name, field in receptive_fields(loaded.model, shape).items():
        print(f"{name:<20}{figures.describe_field(field)}")


def show_image(loaded: Any, options: argparse.Namespace) -> None:
    """Draw attribution maps by every method and the feature maps of every stage for one image."""
    from zoo.analysis import figures, visualise
    from zoo.analysis.explain import METHODS, explain, spatial_stages
    from zoo.analysis.receptive import receptive_fields
    from zoo.fonts import isolate

    card = loaded.card
    methods = [name for name in METHODS if name != "grad_cam" or spatial_stages(loaded)]
    stage = {"grad_cam": options.stage}
    if options.stage is not None and "grad_cam" not in methods:
        raise ValueError(f"--stage: {card.model} has no stage with positions")
    target = options.target
    explanations = []
    for method in methods:
        if sys.stderr.isatty():
            print(f"\r{figures.TITLES[method]:<24}", end="\r", file=sys.stderr, flush=True)
        explanations.append(explain(loaded, options.image, method, target, stage=stage.get(method)))
        target = explanations[0].target
    maps = {name: values[0] for name, values in visualise.feature_maps(loaded, explanations[0].image[None]).items()}
    fields = receptive_fields(loaded.model, card.preprocess.input_shape)
    best = loaded.predict(options.image)[0]
    answer = "  ".join(f"{label} {100 * probability:.1f} %" for label, probability in best.top[:3])
    print(f"{options.image}: {answer}")
    print(f"explained class: {target}, {100 * float(explanations[0].probability):.1f} %")
    figures.draw_explanations(
        explanations, maps, fields, Path(options.output), channels=card.preprocess.channels,
        title=f"{options.checkpoint}   {Path(options.image).name}: "
        + "  ".join(f"{isolate(label)} {100 * probability:.1f} %" for label, probability in best.top[:3]),
    )  # fmt: skip


def show_unit(loaded: Any, options: argparse.Namespace) -> None:
    """Draw the image that maximises a unit and the nine images of a data set that excite it most."""
    import jax
    import numpy as np

    from zoo.analysis import figures, visualise
    from zoo.analysis.receptive import receptive_fields
    from zoo.commands.evaluate import open_data_of
    from zoo.data.dataset import limited
    from zoo.data.images.measure import as_trained

    card, unit = loaded.card, visualise.parse_unit(options.unit, loaded)
    best, names, about = [], card.classes, ""
    try:
        dataset = open_data_of(options.checkpoint, card, options.data, options.data_dir)
    except (ValueError, OSError) as error:
        if options.data:
            raise
        print(f"no images of a data set: {error}", file=sys.stderr)
    else:
        dataset = as_trained(limited(dataset, options.limit) if options.limit else dataset, card.preprocess)
        split = choose_split(dataset, options.split)
        names, about = dataset.class_names, f"{dataset.name}, {split} split"
        best = visualise.top_images(loaded, dataset.splits[split], unit, on_batch=counter("images"))
    image = visualise.maximise_activation(
        loaded.model, loaded.variables, card.preprocess, unit.stage, unit.channel, jax.random.key(0)
    )
    field = receptive_fields(loaded.model, card.preprocess.input_shape).get(unit.stage)
    for found in best:
        print(f"{found.activation:10.3f}  {names[found.label]}  record {found.record}")
    figures.draw_unit(
        unit, np.asarray(image), best, names, Path(options.output), channels=card.preprocess.channels, field=field,
        about=about,
    )  # fmt: skip


def choose_split(dataset: Any, name: str) -> str:
    """Return the split of this name; by default test, or the last one.

    Raises:
        ValueError: if there is no such split.
    """
    from zoo.data.sources.names import canonical_split

    if not name:
        return "test" if "test" in dataset.splits else list(dataset.splits)[-1]
    split = canonical_split(name) or name
    if split not in dataset.splits:
        raise ValueError(f"{dataset.name}: no split {name!r}; choose from {', '.join(dataset.splits)}")
    return split


def show_features(loaded: Any, options: argparse.Namespace) -> None:
    """Draw the features of a data set by PCA, t-SNE and UMAP."""
    from zoo.analysis import embedding, figures
    from zoo.data.sources import open_dataset

    dataset = open_dataset(options.features, options.data_dir)
    split = choose_split(dataset, options.split)
    points = embedding.embed(
        loaded, dataset, options.at or "features", split=split, limit=options.limit, umap=options.umap,
        on_batch=counter("images"),
    )  # fmt: skip
    print(f"{len(points.labels):,} images; {points.about}")
    figures.draw_embedding(points, Path(options.output), loaded.card.preprocess.channels)
