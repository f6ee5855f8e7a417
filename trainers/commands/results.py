"""Verbs that look at finished runs, and at data: evaluate, compare, report, vote, analysis, check-data."""

import itertools
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trainers.processes.failure import is_main


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    data: str = "",
    split: str = "test",
    format: Literal["auto", "table", "json"] = "auto",
) -> None:
    """Score a finished run's model.

        lora-core evaluate runs/lora --split validation

    Args:
        run: its folder.
        data: other data with the same label names; by default the run's own.
        split: train, validation or test.
        format: table: scores in percent by entity type or label; json: all of them with all digits, from 0 to 1; auto:
            a table on a terminal, and JSON for files and programs.
    """
    from trainers.finished import evaluate_run
    from trainers.monitor.rows import scores_table

    scores = evaluate_run(run, data, split)
    if not is_main():
        return
    if format == "json" or (format == "auto" and not sys.stdout.isatty()):
        print(json.dumps(scores, indent=2))
    else:
        print(f"Scores of {run} on the {split} split{f' of {data}' if data else ''}\n{scores_table(scores)}")


def compare(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], output_dir: Path | None = None) -> None:
    """Compare finished runs: a table here, and comparison.md, .json and .png in a folder.

    The settings in which the runs differ are named, and runs that were scored on other data are refused. Runs that
    differ in nothing but their seed are also taken together.

        lora-core compare runs/full runs/lora --output-dir runs/comparison

    Args:
        runs: run folders; differences are taken to the first.
        output_dir: where the files go; by default runs/comparison, or the first of runs/comparison-2, -3, ... that is
            not there yet.
    """
    from trainers.results.compare import compare_runs, comparison_text, write_comparison
    from trainers.run_folder import read_run

    comparison = compare_runs([read_run(folder) for folder in runs])
    print(f"{comparison_text(comparison)}\n")
    for path in write_comparison(comparison, output_dir or _new(Path("runs/comparison"))):
        print(path)


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    output_dir: Path | None = None,
    errors: int = 20,
    examples: int = 2000,
    maps: bool = True,
) -> None:
    """Write one page about a finished run, and beside it every picture as PNG and every table as CSV.

    Curves, scores with intervals, confusions, calibration, the worst errors and what led astray, suspected label
    errors, the data, ONNX against PyTorch, the environment. Further runs are compared with the first. All errors are
    written too, as CSV and as JSON lines that training reads.

        lora-core report runs/lora
        lora-core report runs/lora runs/full --output-dir runs/report

    Args:
        runs: run folders; the page is about the first.
        output_dir: where report.html and report/ go; by default the first run's folder.
        errors: most examples to show that the model got wrong.
        examples: most examples to run through the model, for how sure it is and for its vectors.
        maps: draw the vectors by PCA and t-SNE.
    """
    from trainers.report.evidence import Options
    from trainers.report.page import write_report

    if not runs:
        raise ValueError("report needs a run: name the folder that training wrote.")
    print(write_report(runs, Options(errors, examples, maps), output_dir))


def vote(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], output_dir: Path | None = None) -> None:
    """Let finished classifiers vote, with weights that are fitted on validation data.

    A table of each member's scores and weight, of the uniform vote and the weighted one, and whether they beat the best
    member by more than chance; vote.md and vote.json in a folder. Members may be of any kind, if they were trained on
    the same data with the same labels.

        lora-core vote runs/agnews/bert-lora runs/agnews/bilstm-attention

    Args:
        runs: run folders of text or image classification, two or more.
        output_dir: where vote.md and vote.json go; by default runs/vote, or the first of runs/vote-2, -3, ... that is
            not there yet.
    """
    from trainers.finished import FinishedRun
    from trainers.results.vote import vote as count
    from trainers.results.vote import vote_table, write_vote

    found = count([FinishedRun.open_fast(folder) for folder in runs])
    print(vote_table(found))
    for path in write_vote(found, output_dir or _new(Path("runs/vote"))):
        print(path)


def analysis(
    run: Annotated[Path, tyro.conf.Positional],
    split: Literal["validation", "test", "train"] = "validation",
    pairs: int = 1,
    directions: Literal["one", "both"] = "both",
    words: int = 15,
    worst: int = 10,
    output_dir: Path | None = None,
) -> None:
    """Ask why a text classifier errs: pictures, words, and its worst errors explained.

    analysis.md has the words of the most confused pair of labels (TF-IDF of the confused texts against the recognised
    ones) and the texts whose true label the model found least likely, each with the words that spoke for the wrong one
    (integrated gradients). Beside it: analysis.json, confusion.png, vectors.png (the vectors that the last layer reads,
    by PCA and t-SNE), and confusing_words.txt for the attention head, of other splits than test only.

        lora-core analysis runs/agnews/bert-lora --worst 20

    Args:
        run: its folder.
        split: which texts to look at; validation, so that a model may be trained with the words and tested.
        pairs: pairs of labels whose words are listed, the most confused first.
        directions: of a pair take the more frequent confusion only, or both.
        words: most words for each direction.
        worst: texts to explain.
        output_dir: where the files go; by default RUN/analysis.
    """
    from trainers.finished import FinishedRun
    from trainers.results.errors import analyse, analysis_report, write_analysis

    finished = FinishedRun.open_fast(run)
    found = analyse(finished, split, pairs=pairs, directions=directions, words=words, worst=worst)
    print(analysis_report(found))
    for path in write_analysis(finished, found, output_dir or run / "analysis"):
        print(path)


def check_data(
    data: Annotated[str, tyro.conf.Positional],
    output_dir: Path | None = None,
    task: Literal["token-classification", "text-classification", "image-classification"] = "token-classification",
    label_file: str = "",
    on_bad_row: Literal["error", "skip"] = "error",
    columns: str = "",
    text_column: str = "",
    pair_column: str = "",
    label_column: str = "",
    delimiter: str = "",
    encoding: str = "",
    problem_type: str = "auto",
    model: str = "",
) -> None:
    """Count what tagged sentences, labelled texts or pictures hold, and warn of what may spoil an experiment.

    A table here, and statistics.md, .json and .png in a folder.

        lora-core check-data data/finer-139 --on-bad-row skip
        lora-core check-data data/reviews.csv --task text-classification --model roberta-base
        lora-core check-data data/xrays --task image-classification --on-bad-row skip

    Args:
        data: a file or folder of JSON lines, parquet, CoNLL or texts with spans; for images .npz, folders of pictures
            or tables of them; a name in $LORA_DATA_DIR; or a hub id.
        output_dir: where the files go; by default runs/check-data, or the first of runs/check-data-2, -3, ... that is
            not there yet.
        task: what the data is for.
        label_file: words: names of the tag ids, where the data does not give them.
        on_bad_row: stop at a damaged row or picture and name it, or count and report it.
        columns: words: the columns of the word and of the tag, as "2,4" (from 1) or by name; by default what the
            content says.
        text_column: texts: the column of the text, or of its parts ("title,body"), or a number from 1 as for columns;
            by default names that are usual.
        pair_column: texts: the column of the second text of a pair; by default names that are usual.
        label_column: texts, images: the column of the label, or its number from 1; by default names that are usual.
        delimiter: what stands between columns, such as "," or "tab"; by default what the content says.
        encoding: of text files; by default what the content says.
        problem_type: texts: what the labels are, as for train.
        model: texts: the model whose limit the lengths are compared with; by default none.
    """
    from trainers.data.reading import Reading
    from trainers.data.rows import BadRows

    bad_rows = BadRows(on_bad_row)
    reading = Reading(columns, text_column, pair_column, label_column, delimiter, encoding, on_bad_row)
    if task == "text-classification":
        from trainers.corpus.texts import count_texts, texts_table, write_texts
        from trainers.data.texts.reader import read_text_splits

        datasets = read_text_splits(data, on_bad_row=on_bad_row, reading=reading, problem_type=problem_type)
        texts = count_texts(datasets, model)
        table, write = texts_table(texts), partial(write_texts, texts)
    elif task == "image-classification":
        from trainers.corpus.pictures import count_pictures, pictures_table, write_pictures
        from trainers.data.images.reader import read_image_splits

        pictures = count_pictures(read_image_splits(data, bad_rows, reading), bad_rows)
        table, write = pictures_table(pictures), partial(write_pictures, pictures)
    else:
        from trainers.corpus.statistics import statistics, statistics_table, write_statistics
        from trainers.data.images.files import refuse_pictures
        from trainers.data.tokens.files import find_tagged_source
        from trainers.data.tokens.scan import scan

        refuse_pictures(data)
        counted = statistics(scan(find_tagged_source(data, label_file, reading), bad_rows))
        table, write = statistics_table(counted), partial(write_statistics, counted)
    bad_rows.report()
    print(table)
    for path in write(output_dir or _new(Path("runs/check-data"))):
        print(path)


def _new(folder: Path) -> Path:
    """`folder`, or the first of `folder`-2, -3, ... that is not there: what stands there is kept."""
    names = itertools.chain([folder], (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2)))
    return next(path for path in names if not path.exists())
