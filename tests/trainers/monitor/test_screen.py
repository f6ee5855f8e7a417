import sys
import types

import pytest
from tqdm import tqdm

from trainers.monitor.screen import Lines, Notebook, Silent, in_notebook, plain, screen_of


@pytest.fixture
def cell(monkeypatch):
    """A notebook's cell: what is displayed in it, each display with its successive contents."""
    shown = []

    class Handle:
        def __init__(self, content):
            self.contents = [content]
            shown.append(self)

        def update(self, content):
            self.contents.append(content)

    ipython, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    module.HTML = str
    module.display = lambda content, display_id: Handle(content)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_off_a_terminal_rows_are_plain_lines(capsys, monkeypatch):
    for columns, gap in (("13", 2), ("12", 1)):
        monkeypatch.setenv("COLUMNS", columns)
        screen = Lines()
        screen.row(["a", "long"], [5, 6])
        screen.row(["12345", "*"], [5, 6])
        screen.status("nothing")
        out = capsys.readouterr().out
        assert out == f"    a{' ' * gap}  long\n12345{' ' * gap}     *\n"


def test_a_line_makes_room_for_the_bar_below_it(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with tqdm(total=3, file=sys.stderr):
        Lines().say("a row")
    captured = capsys.readouterr()
    assert captured.out == "a row\n"
    assert "\r" in captured.err


def test_labels_cannot_command_a_terminal_nor_break_its_encoding():
    assert plain("B-\x1b[31mred\r\x07\u202eé\n", "utf-8") == "B-\ufffd[31mred\ufffd\ufffd\ufffdé\n"
    assert plain("B-é·", "ascii") == "B-\\xe9\\xb7"


def test_in_a_notebook_one_table_grows(cell, capsys):
    assert in_notebook()
    screen = screen_of(shown=True)
    assert isinstance(screen, Notebook)
    screen.say("the plan")
    screen.row(["epoch", "F1"], [5, 6])
    screen.row(["1/2", "<90>"], [5, 6])
    screen.status("step 3 of 4")
    screen.row(["2/2", "95"], [5, 6])
    (handle,) = cell
    assert len(handle.contents) == 4
    assert handle.contents[-1] == (
        "<table><tr><th>epoch</th><th>F1</th></tr><tr><td>1/2</td><td>&lt;90&gt;</td></tr>"
        "<tr><td>2/2</td><td>95</td></tr></table><p>step 3 of 4</p>"
    )
    screen.say("the end")
    screen.row(["epoch", "F1"], [5, 6])
    assert len(cell) == 2
    assert capsys.readouterr().out == "the plan\nthe end\n"


def test_who_is_not_to_talk_has_no_screen(capsys):
    assert not in_notebook()
    assert isinstance(screen_of(shown=True), Lines)
    screen = screen_of(shown=False)
    assert isinstance(screen, Silent)
    screen.say("a")
    screen.row(["b"], [1])
    screen.status("c")
    assert capsys.readouterr() == ("", "")
