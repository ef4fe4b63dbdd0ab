"""Lets the tests here, and those of ../parity, import seeded.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
