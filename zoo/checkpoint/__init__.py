"""Checkpoints and saved training state. The only package that imports Orbax and TensorStore.

`manifest`: files and their hashes. `format`: a checkpoint's card and arrays. `remote`: checkpoints in object stores.
`run_state`: the rolling state of a run. `shards`: the arrays of that state, of which each process writes its own.
"""

from zoo.checkpoint.format import (
    CARD,
    Card,
    best_of_run,
    card_from_json,
    compare_leaves,
    leaf_table,
    load_checkpoint,
    read_card,
    require_finite,
    save_checkpoint,
    verify_checkpoint,
)
from zoo.checkpoint.manifest import FORMAT, CorruptCheckpointError
from zoo.checkpoint.remote import BEST, fetch_checkpoint
from zoo.checkpoint.run_state import (
    latest_intact_save,
    latest_save,
    read_arrays_of,
    read_progress,
    read_state,
    save_state,
)
from zoo.checkpoint.shards import Buffers, HostArray, on_devices, reserve, snapshot

__all__ = [
    "BEST",
    "CARD",
    "FORMAT",
    "Buffers",
    "Card",
    "CorruptCheckpointError",
    "HostArray",
    "best_of_run",
    "card_from_json",
    "compare_leaves",
    "fetch_checkpoint",
    "latest_intact_save",
    "latest_save",
    "leaf_table",
    "load_checkpoint",
    "on_devices",
    "read_arrays_of",
    "read_card",
    "read_progress",
    "read_state",
    "require_finite",
    "reserve",
    "save_checkpoint",
    "save_state",
    "snapshot",
    "verify_checkpoint",
]
