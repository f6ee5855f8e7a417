"""What a run takes where its settings leave it open is by its method, task and model; what they say stands."""

import dataclasses
import json

import pytest
import tomli

from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers import recipes
from trainers.cli import main
from trainers.config import GROUPS, RunConfig, TrainConfig
from trainers.experiment import run
from trainers.recipes import RECIPES, recipe_of, usual_epochs, with_recipe
from trainers.run_folder import RunFolder


@pytest.fixture
def wide(tmp_path):
    """The folder of an encoder of a width."""

    def write(width):
        config = config_from_dict({"model_type": "bert", "vocab_size": 9, "hidden_size": width, "num_hidden_layers": 1,
                                   "num_attention_heads": 2, "intermediate_size": 8})  # fmt: skip
        save_pretrained(build_model(config, "token-classification", ["O", "B-DNA"]), tmp_path / f"{width}")
        return str(tmp_path / f"{width}")

    return write


def test_every_method_has_a_recipe_for_every_task_and_lora_names_its_layers():
    fields = {field.name: field.type for group in GROUPS.values() for field in dataclasses.fields(group)}
    for method in fields["method"].__args__:
        for task in fields["task"].__args__:
            recipe = RECIPES[method, task]
            assert bool(recipe.target_modules) == (method == "lora")
            given = with_recipe(RunConfig(method=method, task=task))
            for name in ("learning_rate", "lora_plus_ratio", "warmup"):
                assert getattr(given, name) == getattr(recipe, name)
            assert given.target_modules == recipe.target_modules


@pytest.mark.parametrize(("width", "rate"), [(16, 2e-3), (384, 2e-3), (768, 1e-3), (1024, 7.5e-4)])
def test_a_wider_encoder_takes_a_lower_rate(wide, width, rate):
    assert recipe_of(RunConfig(model=wide(width))).learning_rate == rate


@pytest.mark.parametrize(
    ("config", "steps", "epochs"),
    [
        (RunConfig(), 1066, 3), (RunConfig(), 667, 3), (RunConfig(), 666, 4), (RunConfig(), 100, 20),
        (RunConfig(), 2, 50), (RunConfig(), 0, 50), (RunConfig(task="text-classification"), 100, 3),
        (RunConfig(task="text-classification"), 20, 10), (RunConfig(task="image-classification"), 1, 50),
        (RunConfig(task="text-classification", model="lstm", method="full"), 100, 20), (TrainConfig(), 20, 10),
    ],
)  # fmt: skip
def test_few_examples_take_more_epochs(config, steps, epochs):
    assert usual_epochs(config, steps) == epochs


def test_a_run_says_how_many_epochs_it_takes_and_keeps_to_them(
    tiny, checkpoint, data, tmp_path, capsys, caplog, monkeypatch
):
    caplog.set_level("INFO")
    config = RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path / "run", batch_size=4)
    monkeypatch.setitem(recipes.LEAST_STEPS, "token-classification", 24)  # an epoch of this data has 6
    finished = run(config)
    assert [event["epoch"] for event in finished.epochs] == [1, 2, 3, 4]
    out = " ".join(capsys.readouterr().out.split())
    assert "few training examples, so 4 epochs (--epochs N takes others)" in caplog.messages
    assert "24 steps in 4 epochs" in out
    assert finished.config["epochs"] == 4
    assert tomli.loads((tmp_path / "run" / "run.toml").read_text())["epochs"] == 4
    monkeypatch.undo()  # the rule has changed, as in another version: the run goes on as it was begun
    assert run(dataclasses.replace(config, resume="auto")).config["epochs"] == 4
    assert run(dataclasses.replace(config, overwrite=True, epochs=1)).config["epochs"] == 1


def test_what_the_settings_say_stands():
    said = RunConfig(learning_rate=0.125, lora_plus_ratio=2.0, warmup=0.0, target_modules=("key",))
    assert with_recipe(said) == said
    assert with_recipe(RunConfig(warmup=0.0)).warmup == 0
    assert with_recipe(RunConfig(warmup=0.0)).learning_rate == RECIPES["lora", "token-classification"].learning_rate
    texts = RunConfig(task="text-classification")
    assert with_recipe(texts).lora_plus_ratio == 8
    assert with_recipe(dataclasses.replace(texts, learning_rate=1e-3)).lora_plus_ratio == 1  # another rate's ratio
    scratch = with_recipe(RunConfig(model="lstm", method="full"))
    assert (scratch.learning_rate, scratch.warmup, scratch.target_modules) == (1e-3, 0, ())


def test_a_run_goes_on_with_the_recipe_that_it_was_begun_with(tiny, checkpoint, data, tmp_path, capsys):
    """Also where the recipes have changed since: the settings that its command leaves open are its own."""
    folder = tmp_path / "run"
    config = RunConfig(model=str(checkpoint), data=str(data), output_dir=folder, epochs=1, batch_size=8)
    run(dataclasses.replace(config, learning_rate=0.03, warmup=0.5, target_modules=("key",)))
    before = json.loads(RunFolder(folder).settings.read_text())
    assert run(dataclasses.replace(config, resume="auto")).config == before
    assert (before["learning_rate"], before["warmup"], before["target_modules"]) == (0.03, 0.5, ["key"])
    anew = run(dataclasses.replace(config, overwrite=True)).config
    recipe = RECIPES["lora", "token-classification"]
    assert (anew["learning_rate"], anew["target_modules"]) == (recipe.learning_rate, list(recipe.target_modules))
    assert "(default of method lora for token-classification)" in " ".join(capsys.readouterr().out.split())


def test_the_plan_tells_a_default_rate_from_one_that_was_given(tiny, checkpoint, data, tmp_path, capsys):
    arguments = ["train", "--model", str(checkpoint), "--data", str(data), "--output-dir", str(tmp_path / "run"),
                 "--dry-run"]  # fmt: skip
    main(arguments)
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "learning rate 0.002 (default of method lora for token-classification), linear after a warmup over 6%" in shown
    )
    assert "on all-linear and the head" in shown
    main([*arguments, "--learning-rate", "0.001", "--warmup", "0"])
    assert "learning rate 0.001, linear; the best epoch" in " ".join(capsys.readouterr().out.split())


def test_the_help_names_the_rates(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    words, texts, images = (RECIPES["lora", f"{task}-classification"] for task in ("token", "text", "image"))
    rates = [f"{recipe.learning_rate:.0e}".replace("e-0", "e-") for recipe in (words, texts, images)]
    rates[1] += f" ({texts.lora_plus_ratio:g} times that for B)"
    assert words.lora_plus_ratio == images.lora_plus_ratio == 1
    assert f"LoRA {', '.join(rates)}; full 1e-4" in shown


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_is_no_model_and_it_is_said_where_its_model_is(method, finished):
    folder = finished[method]
    remedy = f"give {folder / 'best'}" if method == "full" else f"lora-core merge {folder}"
    with pytest.raises(ValueError, match=f"--model {folder} is a run, not a model: .*{remedy}"):
        with_recipe(RunConfig(model=str(folder)))
    if method == "lora":
        with pytest.raises(ValueError, match="is a run, not a model"):
            with_recipe(RunConfig(model=str(folder / "adapter")))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_no_generator_takes_are_refused_at_once(seed):
    with pytest.raises(ValueError, match=r"seed (must be|is)"):
        RunConfig(seed=seed)
