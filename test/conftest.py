"""Settings for all tests; modules that several of them share are in test/helpers."""

import os
import sys
from glob import glob
from pathlib import Path

import pytest

# Processes that tests start import the package from this tree, as the tests do (pythonpath in pyproject.toml).
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))

# Without a GPU, kernels are interpreted; triton reads this when it is first imported.
if not glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

LONG = ("test_fsdd.py", "test_recipe_faults.py", "test_corpora.py")  # minutes each, the longest first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that at the end of `make test` no process waits for another's."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread for torch: on matrices this small, waiting for a second one costs more than it saves."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def digits_made() -> None:
    """Recordings of spoken digits are where :data:`tiny_recipe.FSDD_DIR` says."""
    from spoken_digits import digits_dir, make_digits

    make_digits(digits_dir())
