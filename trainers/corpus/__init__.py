"""A corpus known before it is used: statistics of tagged sentences, labelled texts and pictures, and preparation.

May import trainers.data and trainers.show; the command line and examples import it."""
