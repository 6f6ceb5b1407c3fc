"""A container's CPU quota and the affinity bound how many processors are used."""

import os

import pytest

from vllm_videollava.decoding import cpu_count as module
from vllm_videollava.decoding.cpu_count import cpu_count

QUOTAS = {
    "none": ({}, 8),
    "no limit": ({"a/b": "max 100000"}, 8),
    "two processors": ({"a/b": "200000 100000"}, 2),
    "another period": ({"a/b": "150000 50000"}, 3),
    "half a processor": ({"a/b": "50000 100000"}, 1),
    "two and a half": ({"a/b": "250000 100000"}, 2),
    "more than there are": ({"a/b": "6400000 100000"}, 8),
    "the one above is less": ({"a/b": "400000 100000", "a": "300000 100000"}, 3),
    "the own one is less": ({"a/b": "300000 100000", "a": "400000 100000"}, 3),
    "of the whole container": ({"": "200000 100000"}, 2),
    "junk": ({"a/b": "junk", "a": "300000 100000"}, 3),
}


@pytest.mark.parametrize(("quotas", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_the_least_quota_holds(quotas, expected, monkeypatch, tmp_path):
    for name, content in quotas.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "cpu.max").write_text(content + "\n")
    own = tmp_path / "own"
    own.write_text("1:cpu:/other\n0::/a/b\n")
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    monkeypatch.setattr(module, "OWN_CGROUP", own)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cpu_count() == expected


def test_without_cgroups(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "OWN_CGROUP", tmp_path / "none")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "none")
    assert cpu_count() == len(os.sched_getaffinity(0))
