"""What each verb of the command line does: its arguments, their help, and the call; one file a group of verbs.

Imports stand inside the verbs, so that --help and a mistyped flag answer at once.
"""

from collections.abc import Callable

from trainers.commands.folders import convert, info, merge, push
from trainers.commands.results import analysis, check_data, compare, evaluate, report, vote
from trainers.commands.series import study, tune
from trainers.commands.serve import bench, export, predict, serve
from trainers.commands.train import finish, train

VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "finish": finish,
    "study": study,
    "tune": tune,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "vote": vote,
    "analysis": analysis,
    "check-data": check_data,
    "predict": predict,
    "export": export,
    "bench": bench,
    "serve": serve,
    "info": info,
    "convert": convert,
    "merge": merge,
    "push": push,
}
"""In the order of the help."""
