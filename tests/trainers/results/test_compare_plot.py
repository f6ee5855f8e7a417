import pytest
from matplotlib.figure import Figure

from trainers.results.compare import MAX_TYPES, compare_runs, plot_comparison
from trainers.show import COLOURS


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a comparison and returns the matplotlib figure that was saved."""

    def draw(comparison):
        saved = []
        save = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (saved.append(figure), save(figure, *a, **k)))
        plot_comparison(comparison, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        return saved[0]

    return draw


def test_curves_and_bars_show_the_figures(make_run, drawn):
    comparison = compare_runs([make_run("a", f1=0.6), make_run("b", f1=0.8)])
    curves, bars = drawn(comparison).axes
    assert [line.get_label() for line in curves.lines] == ["a (baseline)", "b"]
    assert list(curves.lines[1].get_xdata()) == [1, 2, 3]
    assert list(curves.lines[1].get_ydata()) == pytest.approx([70.0, 75.0, 80 - 10 / 3])
    heights = [[bar.get_height() for bar in container] for container in bars.containers]
    assert heights == [pytest.approx([60.0, 60.0]), pytest.approx([80.0, 80.0])]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["protein\n500", "DNA\n100"]


def test_of_many_types_the_most_frequent_are_drawn(make_run, drawn):
    support = {f"type{number}": number for number in range(1, 40)}
    comparison = compare_runs([make_run("a", support=support), make_run("b", support=support)])
    _, bars = drawn(comparison).axes
    assert bars.get_xticklabels()[0].get_text() == "type39\n39"
    assert len(bars.get_xticklabels()) == MAX_TYPES
    assert f"{MAX_TYPES} most frequent" in bars.get_title()


def test_more_runs_than_colours_stay_distinct(make_run, drawn):
    comparison = compare_runs([make_run(f"run{number}") for number in range(len(COLOURS) + 2)])
    curves, _ = drawn(comparison).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in curves.lines}) == len(COLOURS) + 2
