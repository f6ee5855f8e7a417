"""Texts with labelled spans, as annotation tools export them, to words with tags in BIO: the layouts of the tools'
rows, brat's pairs of files, spaCy's DocBin, and the alignment of spans to words.

May import trainers.data; tokens reads all of it through `reader`, as one more form of tagged words."""
