"""Lets the tests import their helpers as `tests.store.…`, as `python -m tests.store.faults.…` does too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
