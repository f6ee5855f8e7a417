"""Pictures with labels: files, pixels, what a model reads of them."""
