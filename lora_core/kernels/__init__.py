"""Fast forms of what training spends its time on, each equal to a plain one: start with `fuse` in fused.py.

Knows lora_core and lora_core.models; trainers use it, and lora_core.export of it cores.py alone.
"""
