import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from trainers.cli import ALL_VERBS, EXIT_STATUSES, exit_on_user_error, main, parse_run, read_toml
from trainers.commands.train import TrainSettings
from trainers.config import RunConfig
from trainers.processes.failure import DISK_FULL, OUT_OF_MEMORY

ROOT = Path(__file__).resolve().parents[2]


def fails(capsys, *arguments):
    """The error output of a command that must end with status 2."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def fails_in_one_line(capsys, *arguments):
    error = fails(capsys, *arguments)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def words(box):
    """The text of a framed message as one line."""
    return " ".join(re.sub("[─│╭╮╰╯]", " ", box).split())


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_help_of_every_verb(capsys, verb):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    text = words(capsys.readouterr().out)
    assert f"usage: lora-core {verb}" in text
    assert ALL_VERBS[verb].__doc__
    described = TrainSettings.__doc__ if verb == "train" else " ".join(ALL_VERBS[verb].__doc__.split("\n\n")[0].split())
    assert described.rstrip(".") in text


def test_help_of_train_has_every_setting_and_its_meaning(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = words(capsys.readouterr().out)
    for field in dataclasses.fields(RunConfig):
        assert re.search(f"--{field.name.replace('_', '-')}[ ,]", text)
    assert "--config FILE.toml" in text
    assert "Peak learning rate of AdamW." in text


def test_help_without_a_verb_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for verb, call in ALL_VERBS.items():
        assert f"  {verb} " in text
        assert " ".join(call.__doc__.split("\n\n")[0].split()) in " ".join(text.split())
    assert all(re.search(rf"^  {re.escape(status)} +\w", text, re.MULTILINE) for status in EXIT_STATUSES)
    readme = (ROOT / "trainers" / "README.md").read_text(encoding="utf-8")
    for status in (0, 1, 2, OUT_OF_MEMORY, DISK_FULL, 128 + signal.SIGINT):
        assert re.search(rf"^\| ([\d, ]+, )?{status}(, [\d, ]+)? \|", readme, re.MULTILINE), status


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"lora-core {version('lora-core')}, torch {version('torch')}, Python 3.")


@pytest.mark.parametrize(("arguments", "near"), [([], ""), (["trian"], "Did you mean train? ")])
def test_a_wrong_or_missing_verb_names_the_nearest_and_lists_the_verbs(capsys, arguments, near):
    error = fails_in_one_line(capsys, *arguments)
    assert f"{near}The verbs: {', '.join(ALL_VERBS)}." in error


@pytest.mark.parametrize(
    ("verb", "flag", "near"),
    [
        ("train", "--learning-rat", "--learning-rate"),
        ("train", "--lr", "--learning-rate"),
        ("train", "--lora_r", "--r"),
        ("train", "--num_train_epochs=3", "--epochs"),
        ("train", "--per_device_train_batch_size", "--batch-size"),
        ("train", "--fp16", "--precision fp16"),
        ("train", "--no-use-dorra", "--no-use-dora"),
        ("compare", "--outputdir", "--output-dir"),
        ("bench", "--theads", "--threads"),
        ("serve", "--prot", "--port"),
    ],
)
def test_an_unknown_flag_names_the_one_that_was_meant(capsys, verb, flag, near):
    error = fails_in_one_line(capsys, verb, flag, "1")
    assert f"lora-core {verb} has no flag {flag.split('=')[0]}. Did you mean {near}? " in error


def test_a_flag_that_is_like_no_other_names_none(capsys):
    assert fails_in_one_line(capsys, "report", "--zzz").endswith(
        "lora-core report has no flag --zzz. All of them: lora-core report --help\n"
    )


def test_flags_may_have_underscores(tmp_path):
    assert parse_run(["--lora_alpha", "8", "--no-train_head"], RunConfig()) == RunConfig(
        lora_alpha=8.0, train_head=False
    )


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["tr"], {"train"}),
        (["train", "--learn"], {"--learning-rate"}),
        (["train", "--method", ""], {"lora", "full", "head"}),
        (["predict", "--inp"], {"--input-format"}),
        (["serve", "--por"], {"--port"}),
    ],
)
def test_bash_completes(completion_file, typed, offered):
    script = rf"""
        source {completion_file}
        COMP_WORDS=(lora-core "$@"); COMP_CWORD=$#
        $(complete -p lora-core | sed 's/.*-F \([^ ]*\).*/\1/')
        printf '%s\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", *typed], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


@pytest.fixture(scope="module")
def completion_file(tmp_path_factory):
    """What `lora-core completion bash` prints."""
    path = tmp_path_factory.mktemp("completion") / "lora-core.bash"
    with path.open("w") as file:
        subprocess.run([sys.executable, "-m", "trainers", "completion", "bash"], cwd=ROOT, stdout=file, check=True)
    return path


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--batch-size", "0", "batch_size must be at least 1, but it is 0"),
        ("--precision", "fp8", "fp32"),
        ("--r", "x", "int"),
    ],
)
def test_a_wrong_value_of_a_flag(capsys, flag, value, expected):
    assert expected in words(fails(capsys, "train", flag, value))


def test_settings_of_a_file_with_flags_over_it(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = "d"\nepochs = 7\nlearning_rate = 1\ntarget_modules = ["key", "value"]\nuse_dora = true\n')
    default = RunConfig(seed=5, epochs=4)
    expected = RunConfig(seed=5, epochs=2, data="d", learning_rate=1, target_modules=("key", "value"), use_dora=True)
    flags = ["--epochs", "2"]
    assert parse_run(["--config", str(file), *flags], default) == expected
    assert parse_run([*flags, "--config", str(file)], default) == expected
    assert parse_run([f"--config={file}", *flags], default) == expected
    assert read_toml(file, default) == dataclasses.replace(expected, epochs=7)
    assert parse_run(["--target-modules", "query", "dense", "--no-use-dora"], expected) == dataclasses.replace(
        expected, target_modules=("query", "dense"), use_dora=False
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch = 3", r"run.toml: unknown setting 'epoch'. Did you mean 'epochs'?"),
        ("lr_rate = 3", r"Did you mean 'learning_rate'?"),
        ("epochs = 'three'", "run.toml: epochs is 'three', but it should be a whole number"),
        ("batch_size = 0", "run.toml: batch_size must be at least 1, but it is 0"),
        ("epochs 3", "run.toml is not TOML"),
        ("target_modules = 'qv'", "target_modules is 'qv', but it should be a list of strings"),
    ],
)
def test_a_wrong_file(capsys, tmp_path, text, expected):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert expected in fails_in_one_line(capsys, "train", "--config", file)


def test_a_file_that_is_missing_or_not_named(capsys, tmp_path):
    assert "missing.toml does not exist" in fails_in_one_line(capsys, "train", "--config", tmp_path / "missing.toml")
    assert "--config needs the path" in fails_in_one_line(capsys, "train", "--config")


def test_data_is_required(capsys):
    assert "--data is missing" in fails_in_one_line(capsys, "train", "--epochs", 1)


def test_wrong_data_or_model_ends_in_one_line(capsys, tmp_path, data, checkpoint):
    error = fails_in_one_line(capsys, "train", "--data", tmp_path / "nowhere", "--output-dir", tmp_path / "a")
    assert str(tmp_path / "nowhere") in error
    error = fails_in_one_line(
        capsys, "train", "--data", data, "--model", tmp_path / "nothing", "--output-dir", tmp_path / "b"
    )
    assert str(tmp_path / "nothing") in error
    error = fails_in_one_line(
        capsys,
        "train",
        "--data",
        data,
        "--model",
        checkpoint,
        "--target-modules",
        "querry",
        "--output-dir",
        tmp_path / "c",
    )
    assert "query" in error


def test_only_the_first_process_of_several_prints_the_error(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert fails(capsys, "train", "--config") == ""


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError])
def test_errors_of_users_and_errors_of_ours(capsys, kind):
    def fail():
        raise kind("what to do")

    def bug():
        raise KeyError("bug")

    with pytest.raises(SystemExit) as exit_:
        exit_on_user_error(fail)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: what to do\n"
    with pytest.raises(KeyError):
        exit_on_user_error(bug)


def test_train_prints_the_scores_of_the_log(capsys, tmp_path, tiny, checkpoint, data):
    main(tiny.arguments(checkpoint, data, tmp_path / "run", "--epochs", "1", "--method", "head"))
    result = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    scores = result["test"]
    assert f"F1 {100 * scores['f1']:.2f}, precision {100 * scores['precision']:.2f}" in capsys.readouterr().out


def test_compare_prints_the_table_and_writes_the_files(capsys, tmp_path, finished):
    main(["compare", str(finished["full"]), str(finished["lora"]), "--output-dir", str(tmp_path / "both")])
    out = capsys.readouterr().out
    assert re.search(r"^run +full +lora$", out, flags=re.MULTILINE)  # too wide for a row each
    assert re.search(r"^difference +baseline +[+-]\d+\.\d\d$", out, flags=re.MULTILINE)
    assert re.search(r"^method +full +lora$", out, flags=re.MULTILINE)
    written = {path.name for path in (tmp_path / "both").iterdir()}
    assert written == {"comparison.md", "comparison.json", "comparison.png"}
    assert all(str(tmp_path / "both" / name) in out for name in written)
    rows = json.loads((tmp_path / "both" / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["full", "lora"]


def test_an_earlier_comparison_is_kept(tmp_path, finished, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for first, second in (("full", "lora"), ("lora", "full"), ("full", "lora")):
        main(["compare", str(finished[first]), str(finished[second])])
    begun = [json.loads(Path("runs", name, "comparison.json").read_text())["rows"][0]["name"]
             for name in ("comparison", "comparison-2", "comparison-3")]  # fmt: skip
    assert begun == ["full", "lora", "full"]


def test_compare_needs_two_finished_runs(capsys, tmp_path, finished):
    assert "at least two runs" in fails_in_one_line(capsys, "compare", finished["full"])
    assert "not the folder of a run" in fails_in_one_line(capsys, "compare", finished["full"], tmp_path)


def test_evaluate_prints_the_scores_as_json(capsys, finished):
    main(["evaluate", str(finished["lora"]), "--split", "validation"])
    scores = json.loads(capsys.readouterr().out)
    logged = json.loads((finished["lora"] / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    assert scores.pop("loss") == pytest.approx(logged.pop("loss"), abs=1e-5)
    assert scores == logged
    main(["evaluate", str(finished["lora"]), "--split", "validation", "--format", "table"])
    title, header, *_, total, below = capsys.readouterr().out.splitlines()
    assert title == f"Scores of {finished['lora']} on the validation split"
    assert header.split() == ["precision", "recall", "F1", "number"]
    shown = [f"{100 * scores[name]:.2f}" for name in ("precision", "recall", "f1")]
    assert total.split()[:4] == ["all", *shown]
    assert f"accuracy {100 * scores['accuracy']:.2f}" in below
    assert "has no dev split" in fails_in_one_line(capsys, "evaluate", finished["lora"], "--split", "dev")


def test_a_reader_that_closes_the_pipe_early_is_no_error():
    write = "from trainers.cli import exit_on_user_error; exit_on_user_error(lambda: print('x' * 10**6, flush=True))"
    process = subprocess.Popen([sys.executable, "-c", write], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(200) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path):
    """A module that the command line imports sends the signal itself, so that it comes in the middle of imports."""
    (tmp_path / "tyro.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    done = subprocess.run(
        [sys.executable, "-m", "trainers", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by SIGINT.\n")


def test_python_m_trainers_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "trainers", "train"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: --data is missing: .*\n", done.stderr)


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    usage, *rest = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"usage: lora-core {verb}")
    assert any(line.strip().startswith(f"lora-core {verb} ") for line in rest)
