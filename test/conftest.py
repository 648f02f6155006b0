"""Lets the tests find the package where it is not installed: in this process and in those that they start."""

import os
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))


LONG = ("test_fsdd.py", "test_recipe_faults.py", "test_corpora.py")  # minutes each, the longest first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that at the end of `make test` no process waits for another's."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
