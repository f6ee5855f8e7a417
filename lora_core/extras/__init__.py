"""What a reader who came for LoRA may skip.

    combine          one adapter out of several
    hotswap          an adapter's content exchanged in place, for compiled models
    eva              a start from what the data says
    lora_plus        B learns faster than A
    summary          a table of what is adapted

May import the files of lora_core itself, but none of its other rooms. Programs take these functions from lora_core.
"""
