"""Whole texts with labels: files, rows, tokens, random changes.

`reader` finds a data set and knows what one is, `forms` the files that it comes in; `encode` makes model inputs of it,
which `augment` changes in training. May import trainers.data and trainers.data.tokens; tasks, runs and what serves
them import it.
"""
