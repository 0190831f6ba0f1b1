"""The report: one file that needs nothing else, whatever the runs were."""

import html.parser
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import report
from bilevel.report import figures

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checker(html.parser.HTMLParser):
    """Every tag that opens closes; identifiers are unique; which tags there are."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert not {"script", "link", "iframe"} & set(checker.seen)
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import""", page)
    assert all(a.startswith(("#", "data:")) or b.startswith("#") for a, b in loaded)
    return checker


def solved(step_size=0.3, steps=60, **options) -> bl.Result:
    problem = bl.Problem(
        lambda x, y, batch: jnp.sum((y - 1) ** 2), lambda x, y, batch: jnp.sum((y - x) ** 2) / 2
    )
    method = bl.methods.SOBA(x_update=0.05, y_update=step_size, v_update=step_size)
    options = {"log_every": 5, "certify": False, "progress": False, **options}
    start = jnp.zeros(3)
    return bl.solve(problem, method, start, start, steps=steps, **options)


def test_a_comparison_is_one_valid_page_that_loads_nothing():
    runs = {"slow": solved(0.1), "fast <&>": solved(0.5)}
    method = bl.methods.SOBA(x_update=0.05)
    sections = report.of(runs, settings={"slow": method}, lines={"upper": {"best": 0.0}})
    page = report.render("Two & two", sections, "A lead.")
    assert checked(page).seen.count("svg") == 6  # whole; the legend and four panels for a phone
    assert "Two &amp; two" in page
    assert "fast &lt;&amp;&gt;" in page
    assert repr(method) in page
    assert bl.__version__ in page


def test_runs_whose_oracle_calls_are_not_counted_are_drawn_over_steps():
    run = solved(0.1)
    given = run._replace(history=run.history | {"gradients": 0 * run.history["gradients"]})
    counted, uncounted = (report.render("T", report.of({"a": r}), "") for r in (run, given))
    assert "oracle calls" in counted
    assert "updates of the upper variable" not in counted
    assert "oracle calls" not in uncounted
    assert "updates of the upper variable" in uncounted
    checked(uncounted)


def test_legend_and_panels_of_a_figure_stand_alone_on_a_narrow_page():
    with figures.style():
        figure = figures.new_figure(9.6, 3)
        left, right = figure.subplots(1, 2)
        image = left.imshow(np.eye(3))
        figure.colorbar(image, ax=left)
        right.plot([1, 2], label="a line")
        figure.legend(*right.get_legend_handles_labels(), loc="outside upper left")
    page = report.Figure(figure).html()
    checker = checked(page)
    boxes = [list(map(float, box.split())) for box in re.findall(r'<svg viewBox="([^"]*)"', page)]
    assert len(boxes) == 3  # the colour bar is a part of its panel
    for x, y, width, height in boxes:
        assert -4 < x < x + width < 9.6 * 72 + 4
        assert -4 < y < y + height < 3 * 72 + 4
    (_, below, _, _), (start, top, wide, _), (other, same, _, _) = boxes
    assert below < min(top, same)
    assert start + wide < other + 6
    assert set(re.findall(r'<use href="#([^"]*figure_1)"', page)) <= set(checker.ids)


def test_colors_follow_the_theme_of_the_page():
    page = report.render("Run", report.of({"SOBA": solved()}))
    assert "stroke: var(--series-1)" in page
    assert "prefers-color-scheme: dark" in page


def test_metrics_are_drawn_when_there_are_any():
    result = solved(metrics={"distance": lambda x, y: jnp.linalg.norm(x - 1)})
    assert ">distance</text>" in report.render("Run", report.of({"SOBA": result}))


@pytest.mark.parametrize("log_every", [60, 30], ids=["two rows", "three rows"])
def test_a_short_history_is_drawn(log_every):
    checked(report.render("Run", report.of({"SOBA": solved(log_every=log_every)})))


def test_a_run_that_diverged_is_marked():
    result = solved(step_size=1e6, steps=2000, log_every=4)
    assert result.status.outcome is bl.Outcome.DIVERGED
    page = report.render("Run", report.of({"SOBA": result, "good": solved()}))
    checked(page)
    assert "A cross marks a run that broke off." in page


def test_histories_without_a_number_or_a_row():
    good = solved()
    nan = good._replace(history={k: v * np.nan for k, v in good.history.items()})
    none = good._replace(history={}, stats=good.stats._replace(seconds=0.0, notes=("a < b",)))
    page = report.render("Run", report.of({"nan": nan, "none": none, "good": good}))
    checked(page)
    assert "Note: a &lt; b." in page
    checked(report.render("Run", report.of({"none": none})))


def test_the_clock_leaves_out_what_compiling_took():
    history = {"step": np.array([0, 10, 20, 30]), "seconds": np.array([0.2, 5.2, 5.4, 5.6])}
    time = report.clock(history)
    np.testing.assert_allclose(time.running, [0, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(time.compiling, 5.0)


def test_labels_of_close_lines_do_not_touch():
    from bilevel.report.figures import _apart

    heights = _apart([0.5, 0.51, 0.1], 0.08)
    assert abs(heights[1] - heights[0]) >= 0.0799
    assert heights[1] > heights[0]
    assert heights[2] == 0.1


def test_write_says_why_it_cannot(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        report.write(tmp_path / "absent" / "run.html", "Run", [])
    with pytest.raises(ValueError, match="it is a folder"):
        report.write(tmp_path, "Run", [])
    path = report.write(tmp_path / "run.html", "Run", [])
    checked(path.read_text("utf-8"))


def test_plotting_leaves_the_settings_of_the_caller_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    report.render("Run", report.of({"SOBA": solved()}))
    assert dict(matplotlib.rcParams) == before


def test_a_page_that_cannot_be_made_is_a_sentence_and_raises_nothing(tmp_path):
    def broken():
        raise ZeroDivisionError("no axes")

    out = tmp_path / "r.html"
    told = report.try_write(out, "Run", broken)
    assert told == "The report could not be made: ZeroDivisionError: no axes"
    assert not out.exists()
    assert report.try_write(out, "Run", lambda: [report.Section("A", [report.Text("b")])]) == ""
    assert "<h2>A</h2>" in out.read_text("utf-8")


@pytest.mark.parametrize(
    ("mean", "error", "told"),
    [
        (3285.2, 361.0, "3290 ± 360"),
        (0.34151, 0.0004, "0.34151 ± 0.00040"),
        (-1.5, 0.25, "-1.50 ± 0.25"),
        (2.0, 0.0, "2 ± 0"),
    ],
)
def test_a_score_is_told_to_two_digits_of_its_error(mean, error, told):
    assert str(report.Score(mean, error)) == told


@pytest.mark.parametrize(
    ("value", "text"),
    [(-219.8, "-220"), (-1302.5, "-1,302"), (2.0, "2.00"), (123456.0, "123,456"), (2e6, "2.00e+06"),
     (1.5e-7, "1.50e-07"), (math.nan, "–"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_of_a_table_are_written_as_people_write_them(value, text):
    page = report.Table(("run", "loss"), [("a", value)], {"loss": "#.3g"}).html()
    assert f">{text}</td>" in page


def test_a_long_first_cell_leaves_room_for_the_others():
    page = report.Table(("prompt", "answer"), [("a" * 33, "b"), ("a" * 32, "b")]).html()
    assert page.count('<th scope="row" class="long">') == 1
    assert page.count('<th scope="row">') == 1
