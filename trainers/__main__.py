"""`python -m trainers <verb>`."""

from trainers.cli import main

main()
