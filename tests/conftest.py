import os
import tempfile

import torch
from hypothesis import settings

# Sums depend in their last bit on the number of threads, and resumed runs are compared bit for bit, some of them
# run in processes of their own. One thread also suits tiny models.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Triton's kernels run in its interpreter where there is no GPU; this must be said before anything imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Nobody's cache is read or filled by tests; processes that they start inherit this.
_cache = tempfile.TemporaryDirectory(prefix="lora-core-tests-")
os.environ["LORA_CACHE_DIR"] = _cache.name

# But the C++ kernels, which take 20 seconds to build, are built once on a machine.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{tempfile.gettempdir()}/lora-core-tests-extensions-{os.getuid()}")

# The same examples in every run, and no time limit for one example: a busy machine is no failure.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")
