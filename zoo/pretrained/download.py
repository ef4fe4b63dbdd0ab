"""Download weight files.

Two environment variables select mirrors: HF_ENDPOINT replaces https://huggingface.co, as in Hugging Face's own tools;
ZOO_WEIGHTS_URL is the URL of a folder that holds all other files under their own names.
"""

import os
from pathlib import Path

from zoo.download import download
from zoo.pretrained.registry import Weights

HUB = "https://huggingface.co"


def endpoint() -> str:
    """Return the URL of the Hugging Face Hub, or of the mirror that HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def address(weights: Weights) -> str:
    """Return the download URL of `weights`, taking mirrors from the environment into account."""
    if weights.file.startswith("https://"):
        mirror = os.environ.get("ZOO_WEIGHTS_URL")
        return f"{mirror.rstrip('/')}/{weights.file.rpartition('/')[2]}" if mirror else weights.file
    repository, _, file = weights.file.rpartition("/")
    return f"{endpoint()}/{repository}/resolve/main/{file}"


def fetch(weights: Weights, folder: Path) -> Path:
    """Download the file of `weights` into `folder` and verify its hash.

    An interrupted download leaves NAME.part, which this call or a later one resumes.

    Args:
        weights: the row of WEIGHTS to download.
        folder: the folder to download into; created if it does not exist.

    Returns:
        The path of the downloaded file.

    Raises:
        ConnectionError: if the download fails; the message says how to import a file downloaded by other means.
        HashMismatchError: if the hash differs; the file is deleted.
    """
    url = address(weights)
    file = url.rpartition("/")[2]
    try:
        return download(url, folder / f"{weights.name.replace(':', '-')}-{file}", weights.digest, weights.name)
    except ConnectionError as error:
        raise ConnectionError(f"{error}; download the file and run: zoo import {file} --as {weights.name}") from None
