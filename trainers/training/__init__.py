"""What the loop is made of: the run's state and its checkpoints, optimiser, losses, precision, processes, memory.

May import trainers.config and trainers.data; the loop and what lies above it import it."""
