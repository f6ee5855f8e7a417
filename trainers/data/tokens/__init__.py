"""Sentences whose words have labels: where their files lie, rows, BIO tags, pieces of words, windows.

May import trainers.data and its spans; texts (for pieces and windows), tasks, runs, what serves and reports, and
trainers.corpus import it."""
