"""Pictures with labels: files, pixels, what a model reads of them.

`reader` finds a data set, `files` and `npz` are the forms that it comes in; `batches` knows what one is and makes model
inputs of it, by way of `decode` and `processing`. `digits` writes a small data set for examples. May import
trainers.data; tasks, runs and what serves them import it.
"""
