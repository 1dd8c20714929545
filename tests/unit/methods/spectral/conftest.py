"""One thread for torch, so that the suite takes no more of the machine than it needs."""

import torch

torch.set_num_threads(1)
