"""A plugin of pytest that writes each refusal that the tests meet into build/refusals.txt, and fails for bad ones.

Recorded are the errors that the package makes about media, its ValueErrors
that a test expects, and what servers answer with a status of 400 or more.
"""

import functools
import re
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.media.temporary_errors import TemporaryError

PACKAGE = "vllm_videollava"
MAX_CHARACTERS = 500

# vLLM puts <path> where it has found one.
_SERVER_PATH = re.compile(
    r"(?<!\w)/(?:home|usr|opt|var|root|lib|mnt|srv|proc|sys|dev|work|etc|tmp)/|site-packages|<path>"
)
_FAULTS = {
    "has a path of the server": _SERVER_PATH,
    "has the repr of an object": re.compile(r" at 0x[0-9a-f]|<class |\b(?:array|tensor|ndarray)\("),
    "has a traceback": re.compile(r"Traceback|, line \d+, in "),
    "has a value of more than 100 characters": re.compile(
        r"\S{101}|(?<!\w)'[^']{101,}'(?!\w)|\"[^\"]{101,}\"|\[[^\]]{101,}\]|\{[^}]{101,}\}"
    ),
    # The name of a flag, a setting or a file is written as it is.
    "does not start with a capital or a number": re.compile(r"^(?![A-Z0-9/]|--\w|\w+_)"),
    "does not end with a full stop": re.compile(r"(?<![.])$"),
    "is more than two sentences": re.compile(r"(?:[.!?] +[A-Z].*){2}"),
}

_refusals: set[str] = set()


def find_faults(sentence: str) -> list[str]:
    """Say what makes a sentence unfit for its reader."""
    # Offline, people may read of a file that they named themselves; those of tests lie there.
    with_own_paths = sentence.replace(f"{tempfile.gettempdir()}/pytest-of-", "/pytest-of-")
    faults = [fault for fault, pattern in _FAULTS.items() if pattern.search(with_own_paths)]
    if len(sentence) > MAX_CHARACTERS:
        faults.append(f"has more than {MAX_CHARACTERS} characters")
    if not sentence.isprintable():
        faults.append("has control characters")
    return faults


def record_reply(reply: dict) -> None:
    """Record what a server answers; clients are never told of a path."""
    _refusals.add(reply["error"]["message"].replace(tempfile.gettempdir(), "<path>"))


def _record_when_made(error_type: type[Exception], patch: pytest.MonkeyPatch) -> None:
    init = error_type.__init__

    @functools.wraps(init)
    def recording_init(self, sentence: str, **kwargs) -> None:
        init(self, sentence, **kwargs)
        if sys._getframe(1).f_globals["__name__"].startswith(PACKAGE):
            _refusals.add(sentence)

    patch.setattr(error_type, "__init__", recording_init)


def _record_when_expected(patch: pytest.MonkeyPatch) -> None:
    leave = pytest.RaisesExc.__exit__

    def recording_exit(self, error_type, error, trace) -> bool:
        if isinstance(error, ValueError) and _is_ours(trace):
            _refusals.add(str(error))
        return leave(self, error_type, error, trace)

    patch.setattr(pytest.RaisesExc, "__exit__", recording_exit)


def _is_ours(trace) -> bool:
    return PACKAGE in Path(traceback.extract_tb(trace)[-1].filename).parts


def pytest_configure(config: pytest.Config) -> None:
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    _record_when_made(MediaError, patch)
    _record_when_made(TemporaryError, patch)
    _record_when_expected(patch)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.rootpath / "build" / "refusals.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{refusal}\n" for refusal in sorted(_refusals)), errors="backslashreplace")
    if any(map(find_faults, _refusals)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    bad = {refusal: faults for refusal in sorted(_refusals) if (faults := find_faults(refusal))}
    if bad:
        terminalreporter.section("refusals that are not fit for their readers")
    for refusal, faults in bad.items():
        terminalreporter.line(f"{refusal!r} {' and '.join(faults)}", red=True)
