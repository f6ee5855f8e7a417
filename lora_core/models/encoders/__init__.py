"""The families of encoders, a file each, under the names of their published checkpoints; build.py lists them.

Read bert first: its relatives say in a few lines what differs. What they are made of lies in the folder above.
"""
