import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices: waiting for a second thread costs more than it brings."""
    torch.set_num_threads(1)
