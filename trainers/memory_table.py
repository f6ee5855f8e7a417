"""What the ways of training need in memory, side by side."""

from collections.abc import Sequence

from trainers.ablation import AblationRow
from trainers.runs import Run, read_run
from trainers.tables import markdown_table

COLUMNS = {"allocated": "GPU allocated", "reserved": "GPU reserved", "resident": "peak RSS"}
NOTE = (
    "Peaks of training, most of any seed. Peak RSS is that of the main process, its libraries included. Runs have a "
    "process each, except under torchrun with several processes, where earlier runs leave memory behind."
)


def memory_table(rows: Sequence[AblationRow], reference: int = 0) -> str:
    """A Markdown table of peak memory; every figure also as a share of that of `rows[reference]`.

    Raises:
        ValueError: a run was made by a version that did not write these figures.
    """
    peaks = [_peaks([read_run(folder) for folder in row.folders]) for row in rows]
    columns = [name for name in COLUMNS if any(name in peak for peak in peaks)]
    lines = []
    for row, peak in zip(rows, peaks, strict=True):
        cells = [f"{peak[name] / 1e9:.2f} GB ({peak[name] / peaks[reference][name]:.0%})" if name in peak else ""
                 for name in columns]  # fmt: skip
        lines.append([row.model, row.method, *cells])
    table = markdown_table(["model", "training", *(COLUMNS[name] for name in columns)], lines, left=2)
    return f"{table}\n\n{NOTE} In brackets: against {rows[reference].model}.\n"


def _peaks(runs: Sequence[Run]) -> dict[str, int]:
    for run in runs:
        if "memory" not in run.result:
            raise ValueError(f"The run in {run.folder} has no figures of its memory: repeat it with this version.")
    return {name: max(run.result["memory"][name] for run in runs) for name in runs[0].result["memory"]}
