"""The benchmarks' README has the tables that the committed rows give, and plots show the same numbers."""

import html
import json
import re
from pathlib import Path

import pytest

from benchmarks import harness, report

NAMES = list(report.TABLES)


def row(case: str, way: str, metric: str, unit: str, p50: float, **others: float) -> dict:
    return {"case": case, "way": way, "metric": metric, "unit": unit, "p50": p50, **others}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_has_what_the_rows_say(name):
    text = report.README.read_text()
    assert report.put_into(text, name, report.markdown(report.read_table(name)[0])) == text


@pytest.mark.parametrize("name", NAMES)
def test_plots_show_what_the_rows_say(name):
    table, title = report.read_table(name)
    text = html.unescape((harness.RESULTS / f"{name}.svg").read_text())
    shown = set(re.findall(r">([^<>]+)</text>", text))
    assert title in shown
    if table.is_stacked:
        assert {name for name in table.names if not name.startswith(report.NOT_STACKED)} <= shown
    else:
        assert {*table.names, *(table.header[column] for column in table.plotted)} <= shown
        assert {report.show(cells[column]) for cells in table.cells for column in table.plotted} <= shown


def test_a_table_of_throughput():
    rows = [
        row("new video", "a", "time to first token", "s", 0.25),
        row("new video", "b", "time to first token", "s", 12.34),
        row("many videos", "a", "videos answered", "1/s", 1234.5),
    ]
    assert report.markdown(report.throughput_table(rows)).splitlines() == [
        "| | new video, first token, s | many videos, videos/s |",
        "|---|---|---|",
        "| a | 0.250 | 1234 |",
        "| b | 12.3 | – |",  # noqa: RUF001
    ]


def test_a_table_of_a_server():
    tails = {"p95": 2.0, "p99": 3.0, "n": 40}
    rows = [
        row("start", "a", "time", "s", 9.0),
        row("new videos", "a", "time to first token", "s", 1.0, **tails),
        row("new videos", "a", "time per other token", "s", 0.01, **tails),
        row("new videos", "a", "answers", "1/s", 5.0),
        row("new videos", "a", "goodput", "1/s", 0.0),
    ]
    assert report.markdown(report.serving_table(rows)).splitlines()[2:] == [
        "| new videos | 40 | 1.00 | 2.00 | 3.00 | 0.0100 | 2.00 | 3.00 | 5.00 | 0 |"
    ]


def test_a_table_of_stages_is_for_each_video():
    rows = [
        row("1 video", "decoder", "decode", "s", 0.5),
        row("32 videos", "decoder", "decode", "s", 8.0),
        row("1 video", "engine", "device waits for CPU", "%", 7.0),
    ]
    assert report.markdown(report.where_time_goes_table(rows)).splitlines() == [
        "| | 1 video, s each | 32 videos, s each |",
        "|---|---|---|",
        "| decode (decoder) | 0.500 | 0.250 |",
    ]


def test_a_table_of_kernels():
    rows = [
        row("a, 8 frames", "this package", "time", "s", 2.0),
        row("a, 8 frames", "PyTorch", "time", "s", 9.0),
        row("a, 8 frames", "floor", "time", "s", 1.0),
        row("a, 8 frames", "PyTorch", "time, launched one by one", "s", 90.0),
        row("b, 8 frames", "this package", "time", "s", 4.0),
        row("b, 8 frames", "SDPA with transposes", "time", "s", 6.0),
        row("b, 8 frames", "floor", "time", "s", 2.0),
        row("device", "PyTorch", "copy bandwidth", "B/s", 4e12),
    ]
    assert report.markdown(report.kernel_table(rows)).splitlines()[2:] == [
        "| `a`, 8 frames | 4.50 | 2.00 |",
        "| `b`, 8 frames | 1.50 | 2.00 |",
    ]


def test_a_table_of_media():
    cpu, alone, rate = "this process's CPU time per clip", "time of a lone clip", "clips at once"
    values = {
        "this package": (0.5, 2.0, 6.0),
        "decord": (5.0, 3.0, 2.0),
        "decord, one thread, our resizing": (1, 1, 4.0),
    }
    rows = [
        row("720p", way, metric, "", value)
        for way, of_way in values.items()
        for metric, value in zip((cpu, alone, rate), of_way, strict=True)
    ]
    assert report.markdown(report.media_table(rows)).splitlines()[2:] == ["| 720p | 3.00 | 1.50 | 10.0 | -1.00 |"]


def test_a_table_of_memory():
    rows = [
        row("load", "server", f"resident memory, quarter {quarter}", "MiB", 100 + quarter) for quarter in range(1, 5)
    ]
    assert report.markdown(report.memory_table(rows)).splitlines()[2:] == ["| server, load | 102 | 104 |"]


def test_a_table_of_conversions():
    rows = [
        row("x", "plain", "time", "s", 9.0),
        row("x", "plain", "peak memory", "MB", 1234.0),
        row("x", "4 bits", "time", "s", 90.0),
        row("x", "4 bits", "peak memory", "MB", 2345.0),
    ]
    assert report.markdown(report.convert_table(rows)).splitlines() == [
        "| | time, s | peak memory, MB |",
        "|---|---|---|",
        "| plain | 9.00 | 1234 |",
        "| 4 bits | 90.0 | 2345 |",
    ]


def test_a_readme_without_the_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="no place for the table x"):
        report.put_into("text", "x", "table")


@pytest.mark.parametrize("kind", ["bars", "stack"])
def test_a_plot_is_a_small_svg_with_text(tmp_path: Path, kind):
    table = report.Table(["c", "d"], ["a", "b"], [[1.0, 2.0], [3.0, None]], "s", [0, 1], kind == "stack")
    report.plot(table, "Title", tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert "Title" in text
    assert len(text) < 30_000


def test_what_the_readme_says_of_the_goals():
    rows = [json.loads(line) for line in (harness.RESULTS / "throughput_middle.jsonl").open()]
    medians = {(row["case"], row["way"]): row["p50"] for row in rows}
    new, again, mixed = "new video", "same video, other question", "many videos, 4 to 60 tokens each"
    rates = {way: rate for (case, way), rate in medians.items() if case == mixed}
    ours, alone = rates.pop("this package"), rates.pop("LLaMA alone")
    goals = {
        "must take no longer than with transformers. It takes": (
            medians[new, "this package"] / medians[new, "transformers, one by one"],
            lambda times: times <= 1,
        ),
        "must be answered 1.3 times as fast as by transformers' best way. They are answered": (
            ours / max(rates.values()),
            lambda times: times >= 1.3,
        ),
        "must get its first token 6 times as fast as the first one. It gets it": (
            medians[new, "this package"] / medians[again, "this package"],
            lambda times: times >= 6,
        ),
    }
    text = " ".join(report.README.read_text().split())
    equal = "many videos, 32 tokens each"
    of_equal = medians[equal, "this package"] / medians[equal, "LLaMA alone"]
    shares = (
        f"It reaches {ours / alone:.2f} of it with answers of mixed length, and {of_equal:.2f} with equal ones: missed."
    )
    assert shares in text
    assert max(ours / alone, of_equal) < 0.98
    for sentence, (value, is_met) in goals.items():
        verdict = "met" if is_met(value) else "missed"
        assert re.search(rf"{re.escape(sentence)} {value:.2f} [a-z ]+: {verdict}\.", text), (sentence, value, verdict)
