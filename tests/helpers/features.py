"""A plugin of pytest that turns marked tests into the rows of docs/features.md.

    @pytest.mark.feature("Engine", "Tensor parallelism, 2 ranks", how="--tensor-parallel-size 2")

Several tests may have one row; it shows the worst result. A test with `slow=True`
runs only with the option `--features`, which also writes the page; if only some
of the tests run, with the versions that the page names, its other rows are kept,
and those of tests that have never run say so.
A feature that does not work has a test that is expected to fail, with the reason.
"""

import datetime
import platform
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

PAGE = Path("docs/features.md")
_HEAD = """# Features

`make test-features` wrote this page on {date}, with vLLM {vllm}, torch {torch}, transformers {transformers} and Python
{python}, on a {device}. Each row is a test. Most ask the tiny checkpoint, whose right answers are known.
"""


_NOT_RUN = "not run yet"
_WORST_FIRST = ("failed", "does not work", "not run here", "works")


class Row(NamedTuple):
    """A line of the page, and how its tests ended."""

    group: str
    name: str
    how: str
    result: str


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "feature(group, name, how, slow): the test is a row of docs/features.md")
    config.stash[_HOW], config.stash[_ROWS] = {}, {}


_HOW = pytest.StashKey[dict[tuple[str, str], str]]()
_ROWS = pytest.StashKey[dict[tuple[str, str], Row]]()


def feature_names(config: pytest.Config) -> set[tuple[str, str]]:
    """Return the group and the name of each row whose test was collected, whether or not it runs."""
    return set(config.stash[_HOW])


def read_page(text: str) -> list[Row]:
    """Return the rows of the page."""
    rows, group = [], ""
    for line in text.splitlines():
        if line.startswith("## "):
            group = line[3:]
        elif line.startswith("| ") and not line.startswith("| feature |"):
            rows.append(Row(group, *(cell.strip() for cell in line.strip("|").split(" | "))))
    return rows


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    runs_all = config.getoption("--features")
    kept, left_out = [], []
    for item in items:
        marks = list(item.iter_markers("feature"))
        config.stash[_HOW] |= {mark.args: mark.kwargs["how"] for mark in marks}
        is_wanted = bool(marks) if runs_all else not any(mark.kwargs.get("slow") for mark in marks)
        (kept if is_wanted else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    for mark in item.iter_markers("feature"):
        rows = item.config.stash[_ROWS]
        if report.when == "call" or report.outcome != "passed":
            group, name = mark.args
            details = [value for key, value in report.user_properties if key == "detail"]
            row = Row(group, name, mark.kwargs["how"], ": ".join([_result(report), *details]))
            rows[mark.args] = min(row, rows.get(mark.args, row), key=_rank)
    return report


def _rank(row: Row) -> int:
    return next(rank for rank, result in enumerate(_WORST_FIRST) if row.result.startswith(result))


def _result(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"does not work: {report.wasxfail.removeprefix('reason: ')}"
    if report.skipped:
        return f"not run here: {report.longrepr[2].removeprefix('Skipped: ')}"
    return "works" if report.passed else "failed"


def pytest_sessionfinish(session: pytest.Session) -> None:
    rows = session.config.stash[_ROWS]
    if session.config.getoption("--features") and rows:
        path = session.config.rootpath / PAGE
        kept = _kept(path.read_text(), rows)
        shown = {(row.group, row.name) for row in kept} | rows.keys()
        left = [Row(*names, how, _NOT_RUN) for names, how in session.config.stash[_HOW].items() if names not in shown]
        path.write_text(_page([*rows.values(), *kept, *left]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--features"):
        terminalreporter.section("features")
        for row in config.stash[_ROWS].values():
            terminalreporter.line(f"{row.group}: {row.name}: {row.result}", red=row.result == "failed")


def _kept(page: str, rows: dict[tuple[str, str], Row]) -> list[Row]:
    """Return the rows of a page of the same versions, of tests that did not run now."""
    if _head().partition(", with")[2] not in page:
        return []
    return [row for row in read_page(page) if (row.group, row.name) not in rows]


def _head() -> str:
    import vllm
    from vllm.platforms import current_platform

    device = "CPU" if current_platform.is_cpu() else current_platform.get_device_name()
    versions = {name: version(name) for name in ("torch", "transformers")}
    today, python = datetime.date.today(), platform.python_version()
    return _HEAD.format(date=today, vllm=vllm.__version__, python=python, device=device, **versions)


def _page(rows: list[Row]) -> str:
    lines = [_head()]
    for group in sorted({row.group for row in rows}):
        lines += [f"## {group}", "", "| feature | how it was checked | result |", "|---|---|---|"]
        lines += [f"| {row.name} | {row.how} | {row.result} |" for row in sorted(rows) if row.group == group]
        lines.append("")
    return "\n".join(lines)
