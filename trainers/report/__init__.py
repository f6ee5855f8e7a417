"""What finished runs are worth, on one page: scores, curves, confusions, errors in their own words, and more.

page.py writes the page and the files beside it. Each section is made by one module from what `evidence.py` knows of the
run; section.py says what a section is: a title, numbers and pictures.
"""
