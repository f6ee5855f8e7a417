"""The command line: `lora-core <verb>`, which is also `python -m trainers <verb>`."""

import ast
import dataclasses
import inspect
import itertools
import logging
import os
import platform
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tomli
import tyro

from lora_core.kernels.cores import limit_threads
from trainers.commands import VERBS, train
from trainers.commands.train import TrainSettings
from trainers.config import GROUPS, Config, RunConfig
from trainers.other_names import meant
from trainers.processes import interrupt
from trainers.processes.failure import OUT_OF_MEMORY, USER_ERRORS, exit_status, is_main
from trainers.processes.interrupt import Interrupted
from trainers.show import LogHandler

TOP_FLAGS = {"--help": "this text", "--version": "the versions of lora-core, torch and Python"}
TYRO_FLAGS = ("help", "tyro-print-completion", "tyro-write-completion")
EXIT_STATUSES = {
    "0": "done",
    "1": "a bug, with its traceback",
    "2": "a wrong setting or flag, bad data, a file that cannot be read or written: one line says what to do",
    "3, 4": "too little memory; a full disk",
    "128 + N": "stopped by signal N: 130 after Ctrl-C, 143 after SIGTERM; training has left a checkpoint",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; a wrong value ends with one line that says what to do, and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, handlers=[LogHandler()])
    exit_on_user_error(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> None:
    verb, *rest = arguments or [""]
    if verb in ("-h", "--help"):
        print(_help())
        raise SystemExit(0)
    if verb == "--version":
        print(f"lora-core {version('lora-core')}, torch {version('torch')}, Python {platform.python_version()}")
        raise SystemExit(0)
    if verb not in ALL_VERBS:
        raise ValueError(_no_such_verb(verb))
    if verb == "train":  # its flags are laid over the file that --config names
        config = parse_run(rest, TrainSettings(), prog="lora-core train")
        try:
            train(config)
        except Interrupted as interrupted:
            command = _resume_command(arguments, config)
            raise interrupted.with_remedy(f"To go on: {command}") from interrupted
    else:
        _refuse_unknown_flags(f"lora-core {verb}", _flags(ALL_VERBS[verb]), rest)
        tyro.cli(
            ALL_VERBS[verb], args=rest, prog=f"lora-core {verb}", config=(tyro.conf.PositionalMetavarFromFieldName,)
        )


def completion(shell: Annotated[Literal["bash", "zsh", "tcsh"], tyro.conf.Positional]) -> None:
    """Print a script with which a shell completes verbs, flags and their values.

        eval "$(lora-core completion bash)"
        lora-core completion zsh > ~/.zfunc/_lora-core

    Args:
        shell: bash, zsh or tcsh.
    """

    settings = tyro.conf.OmitArgPrefixes[_in_groups(TrainSettings())]  # type: ignore[misc]
    of_train = dataclasses.make_dataclass(
        "Train", [("settings", settings), ("config", Path | None, dataclasses.field(default=None))]
    )
    tyro.extras.subcommand_cli_from_dict(
        {**ALL_VERBS, "train": of_train}, args=["--tyro-print-completion", shell], prog="lora-core"
    )


ALL_VERBS: dict[str, Callable[..., None]] = {**VERBS, "completion": completion}


def _help() -> str:
    """What `lora-core --help` says: every verb in a line or two, and the exit statuses."""
    width = min(100, shutil.get_terminal_size().columns)
    longest = max(map(len, ALL_VERBS))
    lines = ["usage: lora-core VERB ...", "", "lora-core VERB --help explains a verb, with an example.", ""]
    for verb, call in ALL_VERBS.items():
        text = (call.__doc__ or "").split("\n\n")[0]
        lines += textwrap.wrap(
            " ".join(text.split()), width, initial_indent=f"  {verb:{longest}}  ", subsequent_indent=" " * (longest + 4)
        )
    lines += ["", *(f"  {flag:{longest}}  {text}" for flag, text in TOP_FLAGS.items()), "", "exit status:"]
    return "\n".join([*lines, *(f"  {status:{longest}}  {text}" for status, text in EXIT_STATUSES.items())])


def _no_such_verb(verb: str) -> str:
    listed = f"The verbs: {', '.join(ALL_VERBS)}."
    if not verb:
        return f"a verb is missing: lora-core VERB ... {listed}"
    near = meant(verb, ALL_VERBS)
    return f"there is no verb {verb!r}. {f'Did you mean {near}? ' if near else ''}{listed}"


def _refuse_unknown_flags(command: str, known: Collection[str], arguments: list[str]) -> None:
    """Raise ValueError for a flag that a command lacks, with the one that was meant."""
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        name = flag[2:].replace("_", "-")
        if flag.startswith("--") and name and name not in (*known, *TYRO_FLAGS):
            near = meant(name, known)
            suggestion = f"Did you mean --{near}? " if near else ""
            raise ValueError(f"{command} has no flag {flag}. {suggestion}All of them: {command} --help")


def _flags(kind: Callable[..., Any]) -> list[str]:
    """The flags of a verb, or of a dataclass of settings, without the dashes before them."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for name, parameter in inspect.signature(kind).parameters.items():
        hint = hints.get(name)
        inner = getattr(hint, "__origin__", hint)
        if dataclasses.is_dataclass(inner):
            found += _flags(inner)  # type: ignore[arg-type]
        elif tyro.conf.Positional not in getattr(hint, "__metadata__", ()):
            flag = name.replace("_", "-")
            found += [flag, f"no-{flag}"] if isinstance(parameter.default, bool) else [flag]
    return found


def exit_on_user_error(call: Callable[[], None]) -> None:
    """Call, and turn an error that is the user's to mend into its message and exit status 2 (3: memory, 4: disk).

    A reader of the output that closes it early ends the command silently, as it would any other. A signal, such as
    that of Ctrl-C, ends it with one line and exit status 128 + the signal's number.
    """
    limit_threads()
    try:
        with interrupt.raising():
            call()
    except Interrupted as error:
        if is_main():
            print(error, file=sys.stderr)
        raise SystemExit(error.exit_status) from error
    except BrokenPipeError as error:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at exit complains
        raise SystemExit(128 + signal.SIGPIPE) from error
    except USER_ERRORS as error:
        if is_main():  # under torchrun every process meets the same error
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(exit_status(error)) from error
    except RuntimeError as error:
        if "torch" not in sys.modules:  # serving does without: then it is none of torch's errors
            raise
        from trainers.training.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        less = "Give less at a time: a lower --max-tokens of predict, a lower --micro-batch-tokens of training."
        print(f"error: out of memory: {str(error).splitlines()[0]} {less}", file=sys.stderr)
        raise SystemExit(OUT_OF_MEMORY) from error


def _resume_command(arguments: list[str], config: RunConfig) -> str:
    """The command that continues what ``arguments`` began."""
    kept = [
        argument
        for before, argument in itertools.pairwise(["", *arguments])
        if "--resume" not in (before, argument) and not argument.startswith(("--resume=", "--overwrite"))
    ]
    if config.overwrite and "--overwrite" not in arguments:  # a file of settings says so
        kept.append("--no-overwrite")
    processes = os.environ.get("WORLD_SIZE", "1")
    if os.environ.get("LOCAL_WORLD_SIZE", processes) != processes:
        return "the same command on every node with --resume auto"
    alone = "lora-core" if Path(sys.argv[0]).stem == "lora-core" else "python -m trainers"
    program = alone if processes == "1" else f"torchrun --nproc-per-node {processes} -m trainers"
    return f"{program} {shlex.join([*kept, '--resume', 'auto'])}"


def parse_run(arguments: list[str], default: Config, prog: str | None = None) -> Config:
    """Settings from flags, over the TOML file that --config names, over ``default``."""
    config = default
    arguments = [
        part
        for argument in arguments
        for part in (argument.split("=", 1) if argument.startswith("--config=") else [argument])
    ]
    if "--config" in arguments:
        place = arguments.index("--config")
        if place + 1 == len(arguments):
            raise ValueError("--config needs the path of a TOML file.")
        path = Path(arguments[place + 1])
        arguments = arguments[:place] + arguments[place + 2 :]
        config = read_toml(path, config)
    _refuse_unknown_flags(prog or Path(sys.argv[0]).name, ["config", *_flags(type(default))], arguments)
    description = f"{type(default).__doc__}\n\n--config FILE.toml reads settings from a file; flags override them."
    description += f"\n\n    {prog} --config run.toml --output-dir runs/second --seed 1" if prog else ""
    flags = tyro.cli(_in_groups(config), args=arguments, prog=prog, description=description)
    return type(default)(**{name: value for group in vars(flags).values() for name, value in vars(group).items()})


def _in_groups(config: RunConfig) -> type[Any]:
    """A dataclass whose fields are the groups of settings, for tyro to show: flags without prefixes, ``config``'s
    values as defaults, and the text under each field as its help, with lines that flow to the terminal's width."""
    kind = type(config)
    own = {field.name for field in dataclasses.fields(kind)} - {field.name for field in dataclasses.fields(RunConfig)}
    hints = get_type_hints(kind, include_extras=True)
    groups = []
    for title, group in {**({"experiment": kind} if own else {}), **GROUPS}.items():
        names = [field.name for field in dataclasses.fields(group) if title != "experiment" or field.name in own]
        texts = _field_texts(group)
        fields = [
            (
                name,
                Annotated[hints[name], tyro.conf.arg(help=texts.get(name))],
                dataclasses.field(default=getattr(config, name)),
            )
            for name in names
        ]
        made = dataclasses.make_dataclass(f"{title.capitalize()}Flags", fields, namespace={"__doc__": group.__doc__})
        groups.append((title, tyro.conf.OmitArgPrefixes[made], dataclasses.field(default_factory=made)))
    return dataclasses.make_dataclass("Flags", groups)


def _field_texts(kind: type) -> dict[str, str]:
    """What is written under each field of a dataclass, its lines joined; nothing where its source is not at hand."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return {}
    body = ast.parse(textwrap.dedent(source)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def read_toml(path: Path, default: Config) -> Config:
    """The settings in a TOML file over ``default``."""
    try:
        values = tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; --config names a TOML file of settings.") from error
    except tomli.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from error
    return type(default).from_dict({**default.to_dict(), **values}, where=str(path))


if __name__ == "__main__":
    main()
