"""A conversion that does not reach its end leaves nothing that looks like a checkpoint."""

import errno
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.processes import wait_until
from vllm_videollava.conversion.convert import convert
from vllm_videollava.conversion.output import Output

# Converts, but stops in the middle until it is ended.
SLOW = """
import sys, time
from vllm_videollava.commands import main
from vllm_videollava.conversion.output import Output

tensors = Output.tensors

def slowly(self):
    for number, pair in enumerate(tensors(self)):
        yield pair
        if number == 60:
            time.sleep(600)

Output.tensors = slowly
sys.argv = ["vllm-videollava", "convert", *sys.argv[1:]]
main.main()
"""


@pytest.fixture(scope="module")
def halfway(checkpoint, tmp_path_factory):
    """Conversions into folders named `out` that have written some shards, by the signal that each is to get."""
    processes = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        out = tmp_path_factory.mktemp(number.name) / "out"
        command = [sys.executable, "-c", SLOW, str(checkpoint), str(out), "--shard-size", "300KB"]
        processes[number] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True), out
    yield processes
    for process, _ in processes.values():
        process.kill()
        process.wait()


def end(halfway, number: signal.Signals) -> tuple[Path, int, str]:
    """Send a signal; return the folder around `out`, the exit status and what was printed to stderr."""
    process, out = halfway[number]
    wait_until(lambda: len(list(out.parent.glob("out*/*.safetensors"))) > 2, seconds=120)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return out.parent, process.returncode, errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_removes_what_was_written(halfway, number, status):
    folder, returned, errors = end(halfway, number)
    assert returned == status
    assert list(folder.iterdir()) == []
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert errors.endswith("Interrupted; what was written has been removed.\n")


def test_what_a_killed_conversion_leaves_does_not_look_finished(halfway, checkpoint):
    folder, _, _ = end(halfway, signal.SIGKILL)
    (left,) = folder.iterdir()
    assert left.name == "out.unfinished"
    assert not (left / "config.json").exists()
    sentence = (
        f"{left} exists; it is left from a conversion that was killed and must be removed, unless one is running now."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        convert(str(checkpoint), folder / "out")
    shutil.rmtree(left)
    convert(str(checkpoint), folder / "out")


def test_config_json_comes_last(checkpoint, tmp_path, monkeypatch):
    seen = []

    def rename(self, target):
        times = {path.name: path.stat().st_mtime_ns for path in self.iterdir() if path.is_file()}
        seen.append(max(times, key=times.get))
        return original(self, target)

    original = type(tmp_path).rename
    monkeypatch.setattr(type(tmp_path), "rename", rename)
    convert(str(checkpoint), tmp_path / "out")
    assert seen == ["config.json"]


def test_too_little_space_is_noticed_first(checkpoint, tmp_path, monkeypatch):
    free = 5_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/out needs [67]\d\.\dMB, but only 5\.00MB are free there\.$"):
        convert(str(checkpoint), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


FULL = "The disk became full while {} was written; what was there of it has been removed."


def test_a_full_disk(checkpoint, small_disk, monkeypatch):
    """Another process fills it after the check."""
    monkeypatch.setattr("vllm_videollava.conversion.convert.check_space", lambda folder, needed: None)
    out = small_disk / "out"
    with pytest.raises(ValueError, match=f"^{re.escape(FULL.format(out))}$"):
        convert(str(checkpoint), out)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota(checkpoint, tmp_path, monkeypatch, number):
    def fail(self):
        raise OSError(number, "no")
        yield

    monkeypatch.setattr(Output, "tensors", fail)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=f"^{re.escape(FULL.format(out))}$"):
        convert(str(checkpoint), out)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_taken_for_a_full_disk(checkpoint, tmp_path, monkeypatch):
    def fail(self):
        raise OSError(errno.EIO, "no")
        yield

    monkeypatch.setattr(Output, "tensors", fail)
    with pytest.raises(OSError, match="no"):
        convert(str(checkpoint), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
