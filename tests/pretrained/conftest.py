"""Lets the tests here import torch_bytes.py and networks.py, and the seeded tensors of ../models."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]
