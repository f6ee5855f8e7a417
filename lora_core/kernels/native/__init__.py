"""Passes over rows for CPUs, in C++, where torch has no operator of its own: start with `ops` in build.py.

It is built on the machine that runs it, once, when a fused model is first trained there. Knows tensors alone; nothing
but lora_core.kernels uses it, and that has a plain form for each.
"""
