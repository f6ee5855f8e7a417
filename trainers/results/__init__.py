"""Finished runs, looked at: side by side, tested for chance, one on a page; errors and their causes; votes.

May import trainers.finished and what lies below it; the command line and examples import it."""
