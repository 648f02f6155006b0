import torch

torch.set_num_threads(1)  # small matrices: waiting for a second thread costs more than it brings
