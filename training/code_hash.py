"""Stamps a training run's folder with a hash of the code, and refuses a folder stamped by other code."""

import hashlib
from pathlib import Path

from vllm_videollava import tiny
from vllm_videollava.decoding import pixels, sampling

MARK = "code.sha256"


def mark_folder(folder: Path) -> None:
    """Make a folder for this code to train in.

    Raises:
        SystemExit: other code has stamped the folder; its pictures, scenes and weights would not match this code's.
    """
    folders = Path(__file__).parent, Path(tiny.__file__).parent
    sources = [
        Path(sampling.__file__),
        Path(pixels.__file__),
        *(path for each in folders for path in sorted(each.glob("*.py"))),
    ]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if mark.exists() and mark.read_text() != code:
        raise SystemExit(
            f"{folder} was started by a different version of the code; delete it or choose another folder."
        )
    mark.write_text(code)
