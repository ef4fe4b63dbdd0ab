"""Figures of `zoo show`, as PNG: filters, attribution maps, feature maps, units and embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.analysis import pictures
from zoo.analysis.embedding import Embedding
from zoo.analysis.explain import Explanation
from zoo.analysis.receptive import ReceptiveField
from zoo.analysis.visualise import TopImage, Unit
from zoo.fonts import isolate
from zoo.training.plots import GREY, add_legend, new_figure, save_figure

MAPS_PER_STAGE = 8
MAX_STAGES = 10  # stages whose feature maps are drawn
MAX_FILTERS = 256
MAX_LEGEND = 20  # classes listed beside an embedding
THUMBNAILS = 60  # images drawn into an embedding

TITLES = {
    "grad_cam": "Grad-CAM",
    "saliency": "saliency",
    "smooth_grad": "SmoothGrad",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}


def describe_field(field: ReceptiveField | None) -> str:
    """Return "81x81 pixels every 4", "whole image", or ""."""
    if field is None:
        return ""
    if field.whole:
        return "whole image"
    (height, width), (stride, _) = field.size, field.stride
    return f"{width}x{height} pixels every {stride}"


def map_picture(explanation: Explanation, channels: str) -> pictures.Picture:
    """Return the picture of an explanation of one image: over the image, as magnitudes, or signed."""
    if explanation.method == "grad_cam":
        return pictures.overlay(explanation.image, explanation.heatmap, channels)
    if explanation.method in ("integrated_gradients", "occlusion"):
        return pictures.signed(explanation.heatmap)
    return pictures.magnitude(explanation.heatmap)


def draw_filters(filters: np.ndarray, path: Path, title: str) -> None:
    """Draw the kernels of the first layer [F, kh, kw, C]."""
    shown = pictures.filter_pictures(filters[:MAX_FILTERS])
    columns = min(len(shown), max(8, round(len(shown) ** 0.5)))
    sheet = pictures.mosaic([pictures.enlarge(picture, 48) for picture in shown], columns, gap=4)
    width = min(max(sheet.shape[1] / 90, 4), 14)
    figure = new_figure(width, width * sheet.shape[0] / sheet.shape[1] + 0.5)
    _show(figure.subplots(), sheet, title)
    save_figure(figure, path)


def draw_explanations(
    explanations: Sequence[Explanation],
    maps: Mapping[str, np.ndarray],
    fields: Mapping[str, ReceptiveField],
    path: Path,
    *,
    channels: str,
    title: str,
) -> None:
    """Draw an image, its attribution maps, and the strongest feature maps of each stage.

    Args:
        explanations: explanations of one image, one for each method.
        maps: {stage: feature maps [h, w, F]}.
        fields: receptive field of each stage.
        path: the PNG to write.
        channels: order of the image's channels.
        title: title of the figure.
    """
    stages = _evenly(list(maps), MAX_STAGES)
    image = explanations[0].image
    panels = [("network input", pictures.to_rgb(image, channels))]
    for one in explanations:
        where = f" at {one.stage}" if one.stage else ""
        panels.append((f"{TITLES[one.method]}{where}\n{one.target}", map_picture(one, channels)))
    panel = 13 / len(panels)
    aspect = image.shape[0] / image.shape[1]
    heights = [panel * aspect + 0.45, *(13 / MAPS_PER_STAGE * _aspect(maps[name]) * 0.82 for name in stages)]
    figure = new_figure(13, sum(heights) + 0.28 * len(heights) + 0.3)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", parse_math=False)
    rows: Any = np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights)))
    for axes, (name, picture) in zip(np.atleast_1d(rows[0].subplots(1, len(panels))), panels, strict=True):
        _show(axes, picture, name)
    for row, name in zip(rows[1:], stages, strict=True):
        strongest = _strongest(maps[name])
        tiles = [pictures.colour(_unit_range(maps[name][..., k]), "viridis") for k in strongest]
        tiles = [pictures.enlarge(tile, 96) for tile in tiles]
        text = f"{name}: channels {', '.join(map(str, strongest))} of {maps[name].shape[-1]}"
        size = "x".join(map(str, maps[name].shape[:2]))
        field = describe_field(fields.get(name))
        _show(row.subplots(), pictures.mosaic(tiles, MAPS_PER_STAGE, gap=3), f"{text}; {size}; sees {field}")
    save_figure(figure, path)


def draw_unit(
    unit: Unit,
    image: np.ndarray,
    best: Sequence[TopImage],
    class_names: Sequence[str],
    path: Path,
    *,
    channels: str,
    field: ReceptiveField | None,
    about: str,
) -> None:
    """Draw the image that maximises a unit, and the images of a data set that excite it most, with its field."""
    figure = new_figure(10, 4.2)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1, 1.5 if best else 0.05]))
    synthetic = pictures.to_rgb((255 * image).round(), channels)
    _show(left.subplots(), pictures.enlarge(synthetic, 256), f"{unit}: maximised activation")
    if best:
        right.suptitle(f"images that excite it most ({about})", fontsize=10, color=GREY, parse_math=False)
        for axes, found in zip(right.subplots(2, 5).flat, best, strict=False):
            label = f"{isolate(class_names[found.label][:14])}  {found.activation:.2f}"
            _show(axes, pictures.to_rgb(found.pixels, channels), label, size=8)
            _outline(axes, found, field)
        for axes in right.axes[len(best) :]:
            axes.set_axis_off()
    save_figure(figure, path)


def _outline(axes: Any, found: TopImage, field: ReceptiveField | None) -> None:
    """Draw the receptive field of the strongest position, unless it covers the image."""
    if field is None or field.whole or found.position is None:
        return
    from matplotlib.patches import Rectangle

    height, width = found.pixels.shape[:2]
    if field.size[0] >= height and field.size[1] >= width:
        return
    axes_of = zip(field.start, field.stride, found.position, strict=True)
    top, left = (start + stride * at - 0.5 for start, stride, at in axes_of)  # pixels are drawn around their centres
    axes.add_patch(Rectangle((left, top), field.size[1], field.size[0], fill=False, ec="#e4572e", lw=1.4, clip_on=True))


def draw_embedding(embedding: Embedding, path: Path, channels: str) -> None:
    """Draw the features of a data set by PCA, t-SNE and UMAP, coloured by class, with images at some of the points."""
    shares = " and ".join(f"{100 * share:.0f} %" for share in embedding.explained)
    panels = [(f"PCA ({shares} of the variance)", embedding.pca)]
    if embedding.tsne is not None:
        panels.append(("t-SNE", embedding.tsne))
    if embedding.umap is not None:
        panels.append(("UMAP", embedding.umap))
    figure = new_figure(7.2 * len(panels) + 1.2, 6.6)
    from matplotlib.lines import Line2D

    colours = class_colours(len(embedding.class_names))
    figure.suptitle(embedding.about, fontsize=11, x=0.01, ha="left", parse_math=False)
    for axes, (title, points) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        axes.scatter(*points.T, c=colours[embedding.labels], s=12, lw=0)
        _place_thumbnails(axes, points, embedding, colours, channels)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#cccccc")
    present = [k for k in range(len(embedding.class_names)) if (embedding.labels == k).any()][:MAX_LEGEND]
    handles = [Line2D([], [], marker="o", ls="", color=colours[k]) for k in present]
    names = [f"{embedding.class_names[k]:.20}" for k in present]
    add_legend(figure, handles, names, loc="outside right upper", fontsize=9)
    save_figure(figure, path)


def class_colours(count: int) -> np.ndarray:
    """Return a colour for each class, float [count, 4]: distinct for up to 20 classes, else along a colour wheel."""
    import matplotlib

    if count <= 20:
        return matplotlib.colormaps["tab10" if count <= 10 else "tab20"](np.arange(count))
    return matplotlib.colormaps["hsv"](np.arange(count) / count)


def _place_thumbnails(axes: Any, points: np.ndarray, embedding: Embedding, colours: np.ndarray, channels: str) -> None:
    """Draw images at points that are far from each other, framed in the colour of their class."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    spread = np.ptp(points, axis=0)
    scaled = (points - points.min(0)) / np.where(spread > 0, spread, 1)
    chosen: list[int] = []
    for number in range(len(scaled)):
        if not chosen or np.abs(scaled[chosen] - scaled[number]).max(1).min() > 0.075:
            chosen.append(number)
        if len(chosen) == THUMBNAILS:
            break
    for number in chosen:
        picture = pictures.to_rgb(embedding.thumbnails[number], channels)
        zoom = 26 / max(picture.shape[:2])
        colour = colours[embedding.labels[number]]
        frame = {"edgecolor": colour, "linewidth": 1.6, "boxstyle": "square,pad=0"}
        box = AnnotationBbox(OffsetImage(picture, zoom=zoom), tuple(points[number]), pad=0, bboxprops=frame)
        axes.add_artist(box)


def _show(axes: Any, picture: pictures.Picture, title: str, size: int = 9) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_anchor("W")
    axes.set_title(title, fontsize=size, loc="left", parse_math=False)
    axes.set_axis_off()


def _aspect(maps: np.ndarray) -> float:
    return maps.shape[0] / maps.shape[1]


def _strongest(maps: np.ndarray) -> list[int]:
    """Return the channels with the largest mean magnitude, strongest first."""
    return np.argsort(-np.abs(maps).mean((0, 1)), kind="stable")[:MAPS_PER_STAGE].tolist()


def _unit_range(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-12)


def _evenly(names: list[str], limit: int) -> list[str]:
    if len(names) <= limit:
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, limit).round().astype(int)]
