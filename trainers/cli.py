"""The command line: `lora-core <verb>`, which is also `python -m trainers <verb>`."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tomli
import tyro

from trainers.config import Config, RunConfig


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; a wrong value ends with one line that says what to do, and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    exit_on_user_error(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> None:
    if arguments[:1] == ["train"]:  # its flags are laid over the file that --config names
        train(parse_run(arguments[1:], RunConfig(), prog="lora-core train"))
    else:
        tyro.extras.subcommand_cli_from_dict(VERBS, args=arguments, prog="lora-core")


def exit_on_user_error(call: Callable[[], None]) -> None:
    """Call, and turn an error that is the user's to mend into its message and exit status 2."""
    try:
        call()
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        if _is_main():  # under torchrun every process meets the same error
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _is_main() -> bool:
    """Whether this is the only process, or torchrun's first: the one that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def parse_run(arguments: list[str], default: Config, prog: str | None = None) -> Config:
    """Settings from flags, over the TOML file that --config names, over ``default``."""
    config = default
    arguments = [part for argument in arguments
                 for part in (argument.split("=", 1) if argument.startswith("--config=") else [argument])]  # fmt: skip
    if "--config" in arguments:
        place = arguments.index("--config")
        if place + 1 == len(arguments):
            raise ValueError("--config needs the path of a TOML file.")
        path = Path(arguments[place + 1])
        arguments = arguments[:place] + arguments[place + 2 :]
        config = read_toml(path, config)
    description = f"{type(default).__doc__}\n\n--config FILE.toml reads settings from a file; flags override them."
    return tyro.cli(type(default), default=config, args=arguments, prog=prog, description=description)


def read_toml(path: Path, default: Config) -> Config:
    """The settings in a TOML file over ``default``."""
    try:
        values = tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; --config names a TOML file of settings.") from error
    except tomli.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from error
    return type(default).from_dict({**default.to_dict(), **values}, where=str(path))


def train(config: RunConfig) -> None:
    """Train and test a model."""
    from trainers.experiment import run
    from trainers.log import METRICS_FILE

    if not config.data:
        raise ValueError("--data is missing: a folder, a name in $LORA_DATA_DIR, or a hub id such as tner/bionlp2004.")
    result = run(config).result
    if not _is_main():
        return
    test = result.get("test", result["validation"])
    print(f"F1 {test['f1']:.4f}, precision {test['precision']:.4f}, recall {test['recall']:.4f}; "
          f"all figures in {config.output_dir / METRICS_FILE}")  # fmt: skip


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], output_dir: Path = Path("runs/comparison")
) -> None:
    """Compare finished runs: a table here, and comparison.md, .json and .png in a folder.

    Args:
        runs: run folders; differences are taken to the first.
        output_dir: where the files go.
    """
    from trainers.compare import compare_runs, comparison_table, write_comparison
    from trainers.runs import read_run

    comparison = compare_runs([read_run(folder) for folder in runs])
    print(comparison_table(comparison))
    for path in write_comparison(comparison, output_dir):
        print(path)


def evaluate(run: Annotated[Path, tyro.conf.Positional], data: str = "", split: str = "test") -> None:
    """Score a finished run's model.

    Args:
        run: its folder.
        data: other data with the same label names; by default the run's own.
        split: train, validation or test.
    """
    from trainers.experiment import evaluate_run

    scores = evaluate_run(run, data, split)
    if _is_main():
        print(json.dumps(scores, indent=2))


VERBS: dict[str, Callable[..., None]] = {"train": train, "evaluate": evaluate, "compare": compare}

if __name__ == "__main__":
    main()
