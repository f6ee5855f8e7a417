"""Verbs that make many runs: study, tune."""

from pathlib import Path
from typing import Annotated

import tyro


def study(
    file: Annotated[Path, tyro.conf.Positional],
    output_dir: Path = Path("runs/study"),
    processes: int | None = None,
    threads: int | None = None,
    recipes: tuple[str, ...] = (),
    seeds: int | None = None,
    test: tuple[str, ...] = (),
) -> None:
    """Train recipes with the same seeds and compare them: one table with paired intervals, and a picture.

    The file is TOML: `seeds`, `baseline`, [settings] of all runs and [recipes.NAME] with those of each. Recipes are
    compared on validation data; no run touches test data until --test names its recipe. What is finished is not
    repeated: the same command goes on after an interruption, and with more recipes or seeds.

        lora-core study study.toml --output-dir runs/study
        lora-core study study.toml --output-dir runs/study --recipes lora lora-plus --seeds 3
        lora-core study study.toml --output-dir runs/study --recipes lora --seeds 5 --test lora

    Args:
        file: the recipes.
        output_dir: where the runs go, RECIPE/seed-N, with study.validation.md, .json and .png.
        processes: runs at a time; by default one for each core, as long as 3 GB of memory are free for each, or one
            where there is a GPU.
        threads: of each; by default the cores shared out.
        recipes: some of the file's, beside the baseline: the best of the round before, for more seeds; none: all.
        seeds: by default as many as the file says.
        test: when the choice is made, the recipes to score on test data, beside the baseline.
    """
    from trainers.series.study import Study, run_study, study_results, study_table, write_study

    chosen = Study.read(file).part(recipes, seeds)
    chosen.check_names(test)
    failed = run_study(chosen, output_dir, processes=processes, threads=threads, test=test)
    split = "test" if test else "validation"
    results = study_results(chosen, output_dir, split, test)
    print(study_table(results, split))
    for path in write_study(results, output_dir, split):
        print(path)
    if failed:
        raise ValueError(f"{len(failed)} runs failed; the same command tries them again:\n" + "\n".join(failed))


def tune(
    file: Annotated[Path, tyro.conf.Positional],
    output_dir: Path = Path("runs/tune"),
    trials: int = 20,
    processes: int = 1,
    threads: int | None = None,
    storage: str = "",
) -> None:
    """Search for settings: trials with what Optuna proposes, weak ones ended early; needs the extra tune.

    The file is TOML: [settings] of all trials and [ranges.SETTING] with low and high (log = true, or step) or values.
    Trials are judged by their validation scores. The best settings are written as run.toml. The same command goes on
    after an interruption, and started several times at once, on several machines, the trials are shared out.

        lora-core tune tune.toml --output-dir runs/tune --trials 20 --processes 2
        lora-core train --config runs/tune/run.toml --output-dir runs/best

    Args:
        file: settings and ranges.
        output_dir: where the trials go, trial-N, with search.md, .json, .png and run.toml.
        trials: how many are to end, over all processes.
        processes: trials at a time.
        threads: of each; by default the cores shared out.
        storage: what the processes share: a file, by default journal.log in output_dir; or an SQL URL.
    """
    from trainers.series.tune import Search, open_search, run_search, search_table, write_search

    search = Search.read(file)
    record = open_search(search, output_dir, storage)
    run_search(search, record, output_dir, trials, processes=processes, threads=threads)
    paths = write_search(search, record, output_dir)
    print(search_table(search, record))
    for path in paths:
        print(path)
