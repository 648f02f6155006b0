import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))  # tiny_networks


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices: waiting for a second thread costs more than it brings."""
    torch.set_num_threads(1)
