import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from bertron_loadtest import plots
from bertron_loadtest.figures import figures_by_phase, find_phase, right_latencies_ms
from bertron_loadtest.run_record import ProcessUse, Snapshot
from made_up_runs import BEGIN_S, call, make_run, phase, ramp_run, spike_run, steady_run


@pytest.fixture(autouse=True)
def _style():
    with plots.style():
        yield


def points(line):
    return np.column_stack(line.get_data())


def texts_of(figure):
    """What can be read in it."""
    svg = ET.fromstring(plots.svg_of(figure, "x"))  # noqa: S314 - our own
    return ["".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_throughput_and_latencies_over_time():
    calls = [call(0, 2, texts=20), call(2.25, 0.5, texts=5), call(2.5, 0.25), call(3, 0.1)]
    run = make_run(calls, [phase("steady", 0, 4)])
    figure = plots.over_time(run)
    throughput, latency = figure.axes
    assert points(throughput.lines[0]) == pytest.approx(
        np.array([(0.5, 10), (1.5, 10), (2.5, 6), (3.5, 1)])
    )
    by_name = {
        line.get_label(): points(line)[:, 1]
        for line in latency.lines
        if "_" not in line.get_label()
    }
    assert by_name["p50"] == pytest.approx([np.nan, np.nan, 500, 100], nan_ok=True)
    assert by_name["p99"] == pytest.approx([np.nan, np.nan, 2000, 100], nan_ok=True)
    assert throughput.get_ylabel() == "texts/s"
    assert latency.get_ylabel() == "latency, ms"
    assert latency.get_xlabel() == "seconds"


def test_calls_that_were_not_right_have_a_panel_of_their_own():
    calls = [call(0.2, 0.1), call(1.2, 0.1, outcome="refused"), call(1.4, 0.1, outcome="wrong")]
    calls += [call(1.5, 0.1, outcome="timed_out")]
    figure = plots.over_time(make_run(calls, [phase("steady", 0, 3)]))
    panel = figure.axes[2]
    by_name = {line.get_label(): points(line)[:, 1].tolist() for line in panel.lines}
    assert by_name == {"refused": [0, 1, 0], "wrong, lost or failed": [0, 2, 0]}
    assert len(plots.over_time(steady_run(seconds=3)).axes) == 2


def test_long_runs_have_wide_bins():
    run = make_run([call(0, 3600, texts=3600)], [phase("soak", 0, 3600)])
    line = plots.over_time(run).axes[0].lines[0]
    assert len(line.get_xdata()) == 240
    assert line.get_ydata() == pytest.approx(np.ones(240))


def test_phases_are_named():
    assert {"before", "spike", "after"} <= set(texts_of(plots.over_time(spike_run(third_s=2))))
    ramp = texts_of(plots.over_time(ramp_run(most_users=8, step_s=2)))
    assert {"1", "2", "4", "8 users"} <= set(ramp)
    assert "warm-up" in texts_of(plots.over_time(steady_run(seconds=3)))


def test_the_distribution_is_of_all_calls_on_a_logarithmic_axis():
    figure = plots.latency_distribution(
        {"steady": np.array([30.0, 10, 20, 40]), "none": np.array([])}
    )
    (panel,) = figure.axes
    (line,) = panel.lines
    assert points(line).tolist() == [[10, 0.25], [20, 0.5], [30, 0.75], [40, 1]]
    assert panel.get_xscale() == "log"
    many = plots.latency_distribution({"steady": np.arange(1.0, 100_001)}).axes[0].lines[0]
    assert len(many.get_xdata()) == 500
    assert points(many)[-1].tolist() == [100_000, 1]
    assert plots.latency_distribution({"none": np.array([])}) is None


def test_the_parts_of_the_time_add_up():
    by_phase = figures_by_phase(steady_run(seconds=6))
    figure = plots.where_time_went(by_phase)
    (panel,) = figure.axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in panel.containers}
    assert next(iter(widths)) == "network and client"
    assert np.sum(list(widths.values()), axis=0) == pytest.approx([1, 1, 1])
    steady = by_phase["steady"]
    assert widths["tokenizer"][1] == pytest.approx(steady["tokenizer_ms"] / steady["mean_ms"])
    assert f"{steady['mean_ms']:.3g} ms" in texts_of(figure)


def test_the_parts_without_a_network_are_those_of_a_request():
    by_phase = figures_by_phase(steady_run(seconds=6))
    by_phase["all"]["network_ms"] = None
    figure = plots.where_time_went({"all": by_phase["all"]})
    assert "network and client" not in texts_of(figure)
    assert any("in the server" in text for text in texts_of(figure))
    assert f"{by_phase['all']['server_ms']:.3g} ms" in texts_of(figure)
    by_phase["all"]["bert_ms"] = None
    assert plots.where_time_went({"all": by_phase["all"]}) is None


def test_histograms_are_shares_of_batches():
    figure = plots.batches({1: 30, 8: 10}, {16.0: 0, 32.0: 10, 64.0: 0, float("inf"): 30})
    left, right = figure.axes
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in left.patches}
    assert bars == {1: 0.75, 8: 0.25}
    assert [bar.get_height() for bar in right.patches] == [0.25, 0, 0.75]
    assert [label.get_text() for label in right.get_xticklabels()] == ["32", "64", "more"]
    assert plots.batches({}, {}) is None
    assert plots.batches({4: 1}, {}) is not None


def test_cpu_and_memory_of_each_process():
    run = steady_run(seconds=6)
    cpu, memory = plots.processes_over_time(run).axes
    labelled = {
        line.get_label(): line for line in cpu.lines if not line.get_label().startswith("_")
    }
    assert list(labelled) == ["tritonserver", "tokenizer", "bert", "load generator"]
    assert labelled["bert"].get_ydata() == pytest.approx(1.25)
    assert memory.lines[0].get_ydata() == pytest.approx(200)
    assert plots.processes_over_time(make_run([], [phase("steady", 0, 1)])) is None


def test_a_process_that_began_anew_has_a_gap_and_no_negative_cpu():
    uses = [ProcessUse(cpu_s, 10**8) for cpu_s in (50, 51, 0.5, 1.5)]
    snapshots = [
        Snapshot(BEGIN_S + time_s, processes={"bert": use}) for time_s, use in enumerate(uses)
    ]
    cpu, _ = plots.processes_over_time(make_run([], [phase("steady", 0, 3)], snapshots)).axes
    assert cpu.lines[0].get_ydata() == pytest.approx([1, np.nan, 1], nan_ok=True)


def test_the_saturation_curve():
    by_phase = figures_by_phase(ramp_run(most_users=64, step_s=2))
    steps = {name.removesuffix(" users"): by_phase[name] for name in by_phase if "users" in name}
    figure = plots.saturation(steps)
    panel, below = figure.axes
    by_name = {line.get_label(): points(line) for line in panel.lines}
    assert list(by_name) == ["p99", "p95", "p50"]
    for index, found in enumerate(steps.values()):
        assert by_name["p50"][index] == pytest.approx([found["texts_per_s"], found["p50_ms"]])
        assert by_name["p99"][index] == pytest.approx([found["texts_per_s"], found["p99_ms"]])
    assert [text.get_text() for text in panel.texts] == list(steps)
    heights = [bar.get_height() for bar in below.patches]
    assert heights == pytest.approx([found["refused_share"] for found in steps.values()])
    assert heights[-1] > 0.1
    assert plots.saturation({}) is None
    assert plots.saturation({"1": figures_by_phase(make_run([], []))["all"]}) is None


def test_two_runs_side_by_side_begin_together():
    a, b = steady_run(seconds=4), steady_run(seconds=6, warm_up_s=3, latency_ms=100)
    drawn = {"A": (a, find_phase(a, "steady")), "B": (b, None)}
    latencies = {name: right_latencies_ms(*pair) for name, pair in drawn.items()}
    above, below = plots.side_by_side(drawn, latencies).axes
    assert [line.get_label() for line in above.lines] == ["A", "B"]
    assert [line.get_xdata()[0] for line in above.lines] == pytest.approx([0.5, 0.5])
    assert [len(line.get_xdata()) for line in above.lines] == [4, 6]
    assert [line.get_color() for line in above.lines] == [line.get_color() for line in below.lines]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (make_run([], []), []),
        (make_run([], [phase("steady", 0, 5)]), []),
        (
            make_run([call(0, 9, outcome="timed_out")], [phase("steady", 0, 0.2)]),
            ["calls/s", "wrong, lost or failed"],
        ),
        (make_run([call(0, 0)], []), ["p50"]),
    ],
)
def test_runs_that_went_wrong_are_drawn(run, words):
    assert set(texts_of(plots.over_time(run))) >= {"texts/s", "latency, ms", *words}


def test_a_svg_for_a_page_follows_its_theme_and_width():
    svg = plots.svg_of(plots.over_time(steady_run(seconds=3)), "time")
    root = ET.fromstring(svg)  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("width") is None
    assert root.get("height") is None
    assert root.get("viewBox")
    for colour in (plots.INK, plots.FAINT, plots.BLUE, plots.RED):
        assert colour not in svg
    for variable in ("--ink", "--faint", "--blue", "--red"):
        assert f"var({variable})" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert all(name.startswith("time-") for name in ids)
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
    assert {a or b for a, b in used} <= set(ids)
    assert "<script" not in svg


def test_equal_runs_give_equal_files(tmp_path):
    for name in ("a", "b"):
        by_phase = figures_by_phase(ramp_run(most_users=4, step_s=2))
        steps = {key: found for key, found in by_phase.items() if "users" in key}
        plots.write_svg(plots.saturation(steps), tmp_path / name)
    written = (tmp_path / "a").read_text("utf-8")
    assert written == (tmp_path / "b").read_text("utf-8")
    assert "<dc:date>" not in written
    assert "var(--" not in written  # it stands alone
    assert "fill: #ffffff" in written


def test_matplotlibs_settings_are_left_alone():
    code = (
        "import sys, matplotlib as mpl\n"
        "before = mpl.rcParams['svg.hashsalt'], mpl.rcParams['font.size']\n"
        "from bertron_loadtest import plots\n"
        "with plots.style():\n"
        "    plots.svg_of(plots.batches({1: 1}, {}), 'x')\n"
        "    assert mpl.rcParams['svg.hashsalt'] == 'bertron'\n"
        "assert (mpl.rcParams['svg.hashsalt'], mpl.rcParams['font.size']) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "module", ["figures", "counters", "thresholds", "report", "compare", "page"]
)
def test_a_load_generator_does_not_import_matplotlib(module):
    code = f"import sys, bertron_loadtest.{module}; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
