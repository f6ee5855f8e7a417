"""Whole texts with labels, alone or in pairs: files, rows, tokens, random changes.

`reader` finds a data set: `files` knows its files, `forms` and `lines` tell what is in them, `columns` which columns
are the text and the label, `targets` what the labels are; `dataset` is one split in memory. `encode` makes model inputs
of it, which `augment` changes in training. May import trainers.data and trainers.data.tokens; tasks, runs and what
serves them import it.
"""
