"""One process or many: who they are (distributed), how they share a model (fsdp) and a folder (run_lock), and their
fate: restarts under torchrun, one message for a failure or a hang of any of them, an end with the parent, signals
(interrupt).
"""
