"""Whole texts with labels: files, rows, tokens, random changes."""
