"""Sentences whose words have labels: files, rows, pieces of words, windows."""
