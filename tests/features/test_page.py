"""docs/features.md has a row for each test of a feature, and none that failed."""

from helpers.features import feature_names, read_page
from helpers.paths import ROOT

ROWS = read_page((ROOT / "docs" / "features.md").read_text())


def test_every_feature_has_its_row_and_every_row_its_test(request):
    on_page = [(row.group, row.name) for row in ROWS]
    assert len(on_page) == len(set(on_page))
    tested = feature_names(request.config)
    assert tested <= set(on_page)
    if request.config.args == request.config.getini("testpaths"):
        assert tested == set(on_page)


def test_no_row_failed():
    for row in ROWS:
        assert row.result.startswith(("works", "does not work: ", "not run here: ", "not run yet"))
