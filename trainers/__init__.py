"""How models learn: data in, metrics and checkpoints out. Read trainers/loop.py first."""
