"""Lets the tests import their helpers by name, as `python -m tests.training.killed` does too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
