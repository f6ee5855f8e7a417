"""Fast forms of what training spends its time on, each equal to a plain one: start with `fuse` in fused.py.

Knows lora_core and lora_core.models; lora_core.export does not use it, trainers do.
"""
