"""Lets the tests here import photos.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
