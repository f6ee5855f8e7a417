"""Many runs for one question: several seeds, ablations, studies of recipes, searches for settings.

May import trainers.experiment and trainers.results, and what lies below; the command line and examples import it."""
