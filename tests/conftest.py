import os

import torch
from hypothesis import settings

# Sums depend in their last bit on the number of threads, and resumed runs are compared bit for bit, some of them
# run in processes of their own. One thread also suits tiny models.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, and no time limit for one example: a busy machine is no failure.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")
