"""`import lora_core` stays light."""

import subprocess
import sys

NEW_MODULES = """
import sys, torch
before = set(sys.modules)
import lora_core
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def test_imports_torch_safetensors_and_the_standard_library_only():
    """No tokenizers, onnxruntime, scikit-learn, transformers, nor what they bring; benchmarks/ measures the time."""
    done = subprocess.run([sys.executable, "-c", NEW_MODULES], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    assert "lora_core" in names
    assert names - sys.stdlib_module_names <= {"lora_core", "safetensors", "torch", "packaging"}
