"""Linear layers with adapters on a GPU: stacked.py says what is computed; products.py and triton_kernels.py compute it.

Knows nothing of layers and models: lora_core.kernels.linear brings it their tensors.
"""
