"""The number of processors that this process may use."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def cpu_count() -> int:
    """Return the number of processors that the affinity and the container's CPU quota allow, at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), *_quotas()))


def _quotas() -> list[int]:
    """Return the quotas of this process's cgroup and of those above it, in whole processors.

    Each `cpu.max` is "QUOTA PERIOD" in microseconds, or "max PERIOD" (the kernel's cgroup-v2.rst).
    """
    quotas = [os.cpu_count() or 1]
    for folder in _cgroup_folders():
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            quotas.append(round(int(quota) / int(period)))
    return quotas


def _cgroup_folders() -> list[Path]:
    try:
        own = OWN_CGROUP.read_text().partition("0::/")[2].partition("\n")[0]
    except OSError:
        own = ""
    folder = CGROUPS / own
    return [folder, *(above for above in folder.parents if above.is_relative_to(CGROUPS))]
