"""`lora-core report`: the sections of a run as one HTML page without scripts or network, and their files beside it.

Into a folder go report.html and, in report/, every picture as PNG and every table as CSV, and all errors as
errors.csv and errors.jsonl.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from tqdm import tqdm

from lora_core.files import make_folder, write_text
from trainers.finished import FinishedRun
from trainers.report import calibration, confusions, curves, data, label_errors, maps, mistakes, scores, system
from trainers.report.evidence import Evidence, Gone, Options
from trainers.report.pictures import SCHEMES, Embedded, embed
from trainers.report.section import Section
from trainers.run_folder import RunFolder, read_run

Builder = Callable[[Evidence], Section]
SECTIONS: dict[str, tuple[str, Builder]] = {
    "scores": ("The runs compared", scores.section),
    "curves": ("Training curves", curves.section),
    "classes": ("Labels", scores.classes_section),
    "confusions": (confusions.TITLE, confusions.section),
    "calibration": (calibration.TITLE, calibration.section),
    "errors": (mistakes.TITLE, mistakes.section),
    "words": ("Confused words", mistakes.words_section),
    "label-errors": (label_errors.TITLE, label_errors.section),
    "maps": (maps.TITLE, maps.section),
    "data": (data.TITLE, data.section),
    "serving": (system.SERVING, system.serving_section),
    "environment": (system.ENVIRONMENT, system.environment_section),
    "settings": (system.SETTINGS, system.settings_section),
}
"""The page from top to bottom: of each section the title that it has where it cannot be made, and what makes it."""


def write_report(
    folders: str | Path | Sequence[str | Path], options: Options | None = None, output_dir: str | Path | None = None
) -> Path:
    """Write report.html and the files beside it, and return its path.

    Args:
        folders: finished runs: the page is about the first, and compares the others with it.
        options: how much to look at.
        output_dir: where the files go; by default the first run's folder.

    Raises:
        ValueError: a folder is not that of a finished run, or the runs cannot be compared.
    """
    first, *others = [folders] if isinstance(folders, str | Path) else folders
    evidence = Evidence(FinishedRun.open_fast(first), options or Options(), [read_run(folder) for folder in others])
    files = RunFolder(Path(output_dir or first))
    folder = make_folder(files.report_files)
    sections = []
    with tqdm(SECTIONS.items(), desc="report", unit="section", disable=None, leave=False) as progress:
        for key, (title, build) in progress:
            progress.set_postfix_str(key)
            sections.append(_Written.of(_built(key, title, build, evidence), folder))
    try:
        write_text(folder / "errors.csv", mistakes.errors_csv(evidence).csv())
        write_text(folder / "errors.jsonl", mistakes.errors_jsonl(evidence))
    except Gone:  # said in the section of the errors
        pass
    return write_text(files.report, _page(evidence, sections, folder.name))


def _built(key: str, title: str, build: Builder, evidence: Evidence) -> Section:
    """A section, or why it cannot be made where the data or the predictions are gone: the others need none."""
    try:
        return build(evidence)
    except Gone as gone:
        return Section(key, title, missing=str(gone))


@dataclass(frozen=True)
class _Written:
    """A section with its pictures drawn."""

    section: Section
    embedded: dict[str, Embedded]
    """By the pictures' names."""

    @classmethod
    def of(cls, section: Section, folder: Path) -> "_Written":
        """Draw a section's pictures, and write them and its tables into a folder."""
        for table in section.tables:
            write_text(folder / f"{table.name}.csv", table.csv())
        return cls(section, {picture.name: embed(picture, folder) for picture in section.pictures})


def _page(evidence: Evidence, sections: Sequence[_Written], files: str) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run: Any = evidence.run.run
    return templates.get_template("page.html.jinja").render(
        run=run,
        config=evidence.run.config,
        names=evidence.names,
        trained=scores.trained(run),
        split=evidence.split,
        cards=scores.cards(evidence),
        means=MEANS.get(evidence.problem_type or "", ""),
        sections=sections,
        schemes=SCHEMES,
        files=files,
    )


MEANS = {
    "single_label_classification": "precision, recall and F1 are means over the labels",
    "multi_label_classification": "precision, recall and F1 are over all labels of all texts, accuracy is the share of "
    "texts with exactly their labels",
}
"""What the scores on top of the page are of."""
