"""Pictures with labels: files, pixels, what a model reads of them.

`reader` finds a data set. The forms that it comes in: `folders` of classes; tables, of which `tables` reads the rows,
`columns` knows the columns, `paths` finds the pictures and `table_files` makes splits; and `npz`. `lists` reads the
lists of names that tell splits and classes. `files` keeps the pictures that can be used. `batches` knows what a data
set is, and makes model inputs of it, by way of `decode` (with `arrays`) and `processing`. `digits` writes a small data
set for examples. May import trainers.data; tasks, runs and what serves them import it.
"""
