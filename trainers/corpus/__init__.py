"""A corpus of tagged sentences, known before it is used: one pass over its files, statistics, preparation.

May import trainers.data and trainers.show; the command line and examples import it."""
