"""The contract that every model in MODELS satisfies."""

from typing import Any, ClassVar, Protocol, runtime_checkable


@runtime_checkable
class ImageClassifier(Protocol):
    """An image classifier: a frozen `flax.linen` dataclass used as a pair of pure functions, `init` and `apply`.

    Training, fine-tuning, sharding and checkpoint cards need only these attributes of a model. `__hash__` makes it a
    static argument of `jax.jit`.

    `apply(variables, images, train=False)` takes images [B, H, W, C] and returns `(logits, endpoints)`. Logits are
    float32 [B, num_classes], or the features [B, D] if `num_classes` is None. `endpoints` maps names to activations:
    every stage but the head, "features" [B, D], "logits", and the logits of auxiliary heads, "aux1", "aux2", …
    [B, num_classes], whose losses are added in training. With `train=True` pass `mutable=["batch_stats"]` and
    `rngs={"dropout": key}`; the result is then `((logits, endpoints), updates)`. Parameters do not depend on `train`.

    A model may also have `normalisation`, the default of the recipe field of that name, and `added_fields`, the fields
    that its class got after its first cards (see `zoo.models.card_fields`). A model whose first layer depends on the
    data has `initialise_from_images(variables, images)`, which training from scratch applies to freshly initialised
    variables and a sample of the normalised training images [N, H, W, C].

    Attributes:
        num_classes: number of classes, or None for a network without a head.
        family: name shared by the variants of one architecture; recipes are found by it.
        paper: authors, year, title and arXiv id of the publication.
        stages: parts of the network in order, ending in "head". Each parameter path begins with the name of a stage or
            with "aux"; freezing and layer-wise learning rates select by them.
        input_shape: native shape [H, W, C] of an image.
        model_parallel: regular expressions that match whole paths of parameters. Matching parameters are split along
            their last axis, the output features, over the "model" axis of a mesh. () if there are none.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    num_classes: int | None

    @property
    def family(self) -> str: ...

    @property
    def paper(self) -> str: ...

    @property
    def stages(self) -> tuple[str, ...]: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...

    @property
    def model_parallel(self) -> tuple[str, ...]: ...

    def init(self, rngs: Any, images: Any, *, train: bool = False) -> Any: ...

    def apply(self, variables: Any, images: Any, *, train: bool = False, **kwargs: Any) -> Any: ...

    def __hash__(self) -> int: ...

    def clone(self, **fields: Any) -> Any: ...
