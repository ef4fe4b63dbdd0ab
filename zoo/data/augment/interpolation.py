"""Names of the ways to interpolate the crops of a recipe, on the host and on the device."""

#: Values of an operation's `interpolation`, with the methods that it draws from for each image: one of two as in timm,
#: or one of the four of Szegedy et al. 2014 (arXiv:1409.4842), section 6.
INTERPOLATIONS: dict[str, tuple[str, ...]] = {
    "bilinear": ("bilinear",),
    "bicubic": ("bicubic",),
    "random": ("bilinear", "bicubic"),
    "any": ("nearest", "bilinear", "bicubic", "area"),
}
#: Pillow's names of methods, where they differ.
PILLOW_NAMES = {"area": "box"}
