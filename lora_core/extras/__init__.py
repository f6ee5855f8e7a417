"""What a reader who came for LoRA may skip: adapters added up, swapped in place, started from data; LoRA+; a summary.

May import every file of lora_core; nothing but lora_core's own face imports it."""
