"""One thread a process: the machines that run the tests are small and shared."""

import torch

torch.set_num_threads(1)
