import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from trainers.data.images.batches import ImageDataset
from trainers.data.images.npz import write_npz
from trainers.results.confusion import (
    NO_ENTITY,
    RIGHT,
    WRONG,
    choose_samples,
    confusion_picture,
    samples_of_run,
    samples_picture,
)
from trainers.run_folder import RunFolder, save_predictions


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: (figures.append(self), save(self, *args, **options))
    )
    return figures


def test_a_confusion_matrix_for_each_title(tmp_path, drawn):
    matrices = {"full": [[8, 2], [1, 1_009]], "lora": [[10, 0], [0, 1_010]]}
    confusion_picture(matrices, ("cat", "a very long name of a breed"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["full", "lora"]
    assert [text.get_text() for text in panels[0].texts] == ["80%", "20%", "0%", "100%"]
    assert np.allclose(panels[0].images[0].get_array(), [[0.8, 0.2], [1 / 1010, 1009 / 1010]])
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["cat", "a very long name of a breed"]
    assert panels[0].get_ylabel() == "true"
    confusion_picture(matrices, ("cat", "dog"), tmp_path / "b.png", shading="counts")
    assert [text.get_text() for text in drawn[1].axes[0].texts] == ["8", "2", "1", "1,009"]


def test_more_is_never_paler_than_less_and_what_is_no_entity_has_no_share(tmp_path, drawn):
    """812 hits beside 249 spurious ones of which there are no others: the row of the second has no shares."""
    matrix = [[812, 151], [249, 0]]
    for shading in ("counts", "shares"):
        confusion_picture({"": matrix}, ("protein", NO_ENTITY), tmp_path / "a.png", shading=shading)
    counts, shares = (figure.axes[0].images[0] for figure in drawn)
    shown = counts.norm(counts.get_array())
    assert shown[0, 0] > shown[1, 0] > shown[0, 1]
    assert counts.get_array().mask.tolist() == [[False, False], [False, True]]
    assert shares.get_array().mask.tolist() == [[False, False], [True, True]]
    luminance = [sum(counts.cmap(shown[place])[:3]) for place in ((0, 0), (1, 0), (0, 1))]
    assert luminance == sorted(luminance)  # on a white ground more is darker


@pytest.mark.parametrize("count", [2, 14, 40, 140])
def test_names_are_whole_and_nothing_is_empty(tmp_path, drawn, count):
    """The edges of the file lie as close to the drawing whatever the number of labels and their length."""
    labels = [f"DebtInstrumentInterestRate{number}" for number in range(count)]
    confusion_picture({"": np.eye(count, dtype=int).tolist()}, labels, tmp_path / "a.png")
    assert [text.get_text() for text in drawn[0].axes[0].get_xticklabels()] == labels
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L")) < 200
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    edges = [rows[0], columns[0], pixels.shape[0] - 1 - rows[-1], pixels.shape[1] - 1 - columns[-1]]
    assert all(5 <= edge <= 40 for edge in edges), edges
    longest = max(np.diff(np.flatnonzero(pixels.any(1))).max(), np.diff(np.flatnonzero(pixels.any(0))).max())
    assert longest <= 60


def test_many_labels_and_many_matrices(tmp_path, drawn):
    labels = [str(number) for number in range(40)]
    confusion_picture(dict.fromkeys("abcd", np.eye(40, dtype=int).tolist()), labels, tmp_path / "a.png")
    assert not drawn[0].axes[0].texts
    places = [panel.get_position() for panel in drawn[0].axes]
    assert len(places) == 4  # three in the first row
    assert len({round(place.x0, 3) for place in places}) == 3
    assert places[3].y1 < places[0].y0


def test_samples_tell_right_from_wrong(tmp_path, drawn):
    images = [Image.new("L", (8, 8), 100), Image.new("RGB", (9, 5), "red")]
    samples_picture(images, ["cat", "cat"], ["cat", "dog"], tmp_path / "a.png", title="two")
    first, second = drawn[0].axes
    assert (first.get_title(), first.title.get_color()) == ("cat", RIGHT)
    assert (second.get_title(), second.title.get_color()) == ("dog\n(true: cat)", WRONG)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_up_to_half_of_the_samples_are_wrong_ones():
    gold, predicted = np.zeros(100, int), np.zeros(100, int)
    predicted[:20] = 1
    chosen = choose_samples(gold, predicted, count=12)
    assert len(set(chosen.tolist())) == 12
    assert (predicted[chosen] == 1).tolist() == [False] * 6 + [True] * 6
    assert np.array_equal(chosen, choose_samples(gold, predicted, count=12))
    predicted[2:] = 0
    assert (predicted[choose_samples(gold, predicted, count=12)] == 1).sum() == 2
    assert len(choose_samples(gold[:5], gold[:5], count=12)) == 5
    assert len(choose_samples(gold, gold + 1, count=12)) == 12


@pytest.fixture
def run(tmp_path):
    """A finished run on six pictures, as far as its folder tells, and its data."""
    data = tmp_path / "a.npz"
    dataset = ImageDataset(np.zeros((6, 4, 4), np.uint8), np.array([0, 1] * 3), ("cat", "dog"), "")
    write_npz(data, {"train": dataset, "validation": dataset, "test": dataset})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"task": "image-classification", "data": "{data}"}}')
    RunFolder(folder).metrics.write_text('{"event": "result", "labels": ["cat", "dog"]}\n')
    gold = [np.array([label]) for label in dataset.targets]
    save_predictions(folder, "test", [np.array([0])] * 6, gold)
    return folder, data


def test_samples_of_a_finished_run(run, drawn):
    folder, _ = run
    samples_of_run(folder, folder / "samples.png")
    titles = [panel.get_title() for panel in drawn[0].axes]
    assert titles == ["cat"] * 3 + ["cat\n(true: dog)"] * 3
    assert "6 pictures of the test split, 50.0% right" in drawn[0].get_suptitle()


def test_samples_of_data_that_has_changed(run):
    folder, data = run
    other = ImageDataset(np.zeros((6, 4, 4), np.uint8), np.array([1, 0] * 3), ("cat", "dog"), "")
    write_npz(data, {"train": other, "validation": other, "test": other})
    with pytest.raises(ValueError, match="does not hold the examples"):
        samples_of_run(folder, folder / "samples.png")
