"""Writes the tables of benchmarks/README.md and a plot for each from the rows in benchmarks/results.

    python -m benchmarks.report

A table stands in the README between two comments that name it; its plot is results/NAME.svg.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness

README = Path(__file__).parent / "README.md"
Row = dict[str, Any]
OURS, FLOOR, SDPA = "this package", "floor", "SDPA with transposes"
# Only the benchmark combines these two, so it is not one of the alternatives.
DECORD_AND_OURS = "decord, one thread, our resizing"


class Table(NamedTuple):
    """A table, its first column being the names of what was measured.

    Attributes:
        unit: of what is plotted.
        plotted: the columns that the plot shows, by position after the first, unless it is stacked.
        is_stacked: whether a bar of the plot is a column of the table, and not a cell.
    """

    header: Sequence[str]
    names: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    unit: str
    plotted: Sequence[int] = ()
    is_stacked: bool = False


def _medians(rows: list[Row]) -> dict[tuple[str, str, str], float]:
    return {(row["case"], row["way"], row["metric"]): row["p50"] for row in rows}


def kernel_table(rows: list[Row]) -> Table:
    """Kernels and numbers of frames in rows: the speed-up over PyTorch, and the multiple of the device's limit."""
    times = {(row["case"], row["way"]): row["p50"] for row in rows if row["metric"] == "time"}
    cases = [case for case, way in times if way == "PyTorch" and (case, FLOOR) in times]
    cases += [case for case, way in times if way == SDPA]
    cells = []
    for case in cases:
        ours, plain = times[case, OURS], times.get((case, SDPA)) or times[case, "PyTorch"]
        cells.append([plain / ours, ours / times[case, FLOOR]])
    names = [f"`{kernel}`, {frames}" for kernel, frames in (case.split(", ") for case in cases)]
    return Table(["times as fast as PyTorch", "times the device's limit"], names, cells, "times", [0, 1])


def whole_model_table(rows: list[Row]) -> Table:
    """Ways in rows: videos answered a second with 128 tokens each."""
    many = [row for row in rows if row["case"] == "many clips, 128 tokens"]
    return Table(["videos/s"], [row["way"] for row in many], [[row["p50"]] for row in many], "videos a second", [0])


def media_table(rows: list[Row]) -> Table:
    """Clips in rows: this package's throughput, CPU time and time, beside those of other ways."""
    medians = _medians(rows)
    ways, cases = (list(dict.fromkeys(row[key] for row in rows)) for key in ("way", "case"))
    others = [way for way in ways if way not in (OURS, DECORD_AND_OURS)]
    cells = []
    for case in cases:
        rate = {way: medians[case, way, "clips at once"] for way in ways}
        cpu, alone = (
            [medians[case, way, metric] for way in (OURS, "decord")]
            for metric in ("this process's CPU time per clip", "time of a lone clip")
        )
        best = max(rate[way] for way in others)
        cells.append(
            [rate[OURS] / best, rate[OURS] / rate[DECORD_AND_OURS], 100 * cpu[0] / cpu[1], alone[0] - alone[1]]
        )
    header = [
        "throughput, times best other way",
        "throughput, times decord with our resizing",
        "CPU time, % of decord's",
        "time, minus decord's, s",
    ]
    return Table(header, cases, cells, "times", [0, 1])


def memory_table(rows: list[Row]) -> Table:
    """Processes under each load in rows: MiB in the second and the last quarter of the videos."""
    names = list(dict.fromkeys((row["case"], row["way"]) for row in rows))
    medians = _medians(rows)
    quarters = [f"resident memory, quarter {quarter}" for quarter in (2, 4)]
    cells = [[medians[case, way, quarter] for quarter in quarters] for case, way in names]
    header = ["second quarter, MiB", "last quarter, MiB"]
    return Table(header, [f"{way}, {case}" for case, way in names], cells, "MiB", [0, 1])


def throughput_table(rows: list[Row]) -> Table:
    """Ways in rows, cases in columns: seconds to the first token, then videos answered a second."""
    cases = list(dict.fromkeys((row["case"], row["metric"]) for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    medians = _medians(rows)
    header = [f"{case}, {_short(metric)}" for case, metric in cases]
    cells = [[medians.get((case, way, metric)) for case, metric in cases] for way in ways]
    many = [index for index, (_, metric) in enumerate(cases) if metric == "videos answered"]
    return Table(header, ways, cells, "videos a second", many)


def _short(metric: str) -> str:
    return {"time to first token": "first token, s", "videos answered": "videos/s"}[metric]


def serving_table(rows: list[Row]) -> Table:
    """Cases in rows: questions, seconds to the first token and between the others, answers a second."""
    by_metric = {(row["case"], row["metric"]): row for row in rows}
    cases = list(dict.fromkeys(row["case"] for row in rows if row["metric"] == "answers"))
    levels = ("p50", "p95", "p99")
    header = ["questions"]
    header += [f"{what}, {level}, s" for what in ("first token", "each other token") for level in levels]
    header += ["answers/s", "good answers/s"]
    cells = []
    for case in cases:
        first, other = by_metric[case, "time to first token"], by_metric[case, "time per other token"]
        times = [row[level] for row in (first, other) for level in levels]
        rates = [by_metric[case, metric]["p50"] for metric in ("answers", "goodput")]
        cells.append([first["n"], *times, *rates])
    return Table(header, cases, cells, "answers a second", [7, 8])


def where_time_goes_table(rows: list[Row]) -> Table:
    """Stages in rows, cases in columns: seconds for each video."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    stages = list(dict.fromkeys((row["way"], row["metric"]) for row in rows if row["unit"] == "s"))
    medians = _medians(rows)
    counts = [int(case.split()[0]) for case in cases]
    cells = [
        [value / count if (value := medians.get((case, *stage))) is not None else None
         for case, count in zip(cases, counts, strict=True)]
        for stage in stages
    ]  # fmt: skip
    names = [f"{stage} ({process})" for process, stage in stages]
    return Table([f"{case}, s each" for case in cases], names, cells, "seconds a video", is_stacked=True)


def convert_table(rows: list[Row]) -> Table:
    """Ways to convert in rows: seconds, and megabytes in memory and on the disk."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    metrics = {row["metric"]: row["unit"] for row in rows}
    values = {(row["way"], row["metric"]): row["p50"] for row in rows}
    header = [f"{metric}, {unit}" for metric, unit in metrics.items()]
    return Table(header, ways, [[values[way, metric] for metric in metrics] for way in ways], "seconds", [0])


class Source(NamedTuple):
    """What a table is made from, and the title of its plot, to which the device is added."""

    files: Sequence[str]
    make: Callable[[list[Row]], Table]
    title: str


TABLES = {
    "kernel_speed": Source(["kernel_speed"], kernel_table, "Kernels"),
    "throughput": Source(["throughput", "throughput_of_transformers"], whole_model_table, "The 7B model's shape"),
    "throughput_tiny": Source(["throughput_tiny"], throughput_table, "Offline, tiny"),
    "throughput_middle": Source(["throughput_middle"], throughput_table, "Offline, middle"),
    "serving_tiny": Source(["serving_tiny"], serving_table, "A server, tiny"),
    "where_time_goes_middle": Source(["where_time_goes_middle"], where_time_goes_table, "Where the time goes, middle"),
    "media": Source(["media"], media_table, "From file to pixels"),
    "soak": Source(["soak"], memory_table, "Memory"),
    "convert": Source(["convert"], convert_table, "Converting"),
}
# The whole, and a time that overlaps the stages.
NOT_STACKED = ("wall time", "until sent")


def read_table(name: str) -> tuple[Table, str]:
    """Make a table and the title of its plot from the rows in `results`.

    Raises:
        ValueError: the rows are of several devices.
    """
    files = [harness.RESULTS / f"{file}.jsonl" for file in TABLES[name].files]
    rows = [json.loads(line) for file in files for line in file.open()]
    devices = {row["device"] for row in rows}
    if len(devices) != 1:
        raise ValueError(f"The rows for {name} are of several devices: {devices}.")
    return TABLES[name].make(rows), f"{TABLES[name].title}: {devices.pop()}"


def show(value: float | None) -> str:
    """Show three significant digits, without an exponent."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, int) or not value:
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def markdown(table: Table) -> str:
    header = f"| | {' | '.join(table.header)} |"
    lines = [header, "|" + "---|" * (1 + len(table.header))]
    for name, cells in zip(table.names, table.cells, strict=True):
        lines.append(f"| {name} | {' | '.join(map(show, cells))} |")
    return "\n".join(lines)


def put_into(text: str, name: str, table: str) -> str:
    """Put a table between its comments.

    Raises:
        ValueError: the text does not have the comments.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The README has no place for the table {name}.")
    return pattern.sub(lambda _: begin + table + "\n" + end, text)


def plot(table: Table, title: str, path: Path) -> None:
    """Draw a table as bars, with each bar's value beside it, in an SVG whose text stays text."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9})
    from matplotlib import pyplot

    draw, bars = (_stack, 2) if table.is_stacked else (_bars, len(table.names) * len(table.plotted))
    figure, axes = pyplot.subplots(figsize=(8, 1.6 + 0.28 * bars), layout="constrained")
    draw(axes, table)
    axes.set_title(title, loc="left")
    axes.set_xlabel(table.unit)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _bars(axes: Any, table: Table) -> None:
    height = 0.8 / len(table.plotted)
    for turn, column in enumerate(table.plotted):
        places = [place + (turn - (len(table.plotted) - 1) / 2) * height for place in range(len(table.names))]
        values = [row[column] or 0 for row in table.cells]
        bars = axes.barh(places, values, height, label=table.header[column])
        axes.bar_label(bars, [show(row[column]) for row in table.cells], padding=2)
    axes.set_yticks(range(len(table.names)), table.names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    figure = axes.figure
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def _stack(axes: Any, table: Table) -> None:
    from matplotlib import colormaps

    places, left = range(len(table.header)), [0.0] * len(table.header)
    stages = [
        (name, cells) for name, cells in zip(table.names, table.cells, strict=True) if not name.startswith(NOT_STACKED)
    ]
    for (name, cells), colour in zip(stages, colormaps["tab20"].colors, strict=False):
        values = [value or 0 for value in cells]
        axes.barh(places, values, 0.6, left, label=name, color=colour)
        left = [begin + value for begin, value in zip(left, values, strict=True)]
    axes.set_yticks(places, [header.partition(",")[0] for header in table.header])
    axes.invert_yaxis()
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def main() -> None:
    text = README.read_text()
    for name in TABLES:
        table, title = read_table(name)
        text = put_into(text, name, markdown(table))
        plot(table, title, harness.RESULTS / f"{name}.svg")
    README.write_text(text)


if __name__ == "__main__":
    main()
