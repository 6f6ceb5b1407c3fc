"""The suite fails when one of its refusals is not fit for a reader."""

import os
import subprocess
import sys

import pytest

from helpers.refusals import find_faults

GOOD = [
    "The video is empty.",
    "Message 1, part 2: The image is not valid base64: its character 11 is '@'.",
    "VIDEO_LLAVA_MAX_FRAMES is '0'; it must be an integer of at least 1.",
    "mm_image_tower is None; it must name a LanguageBind tower.",
    "--media-io-kwargs has no key 'videos'.",
    "1 <image> placeholder was found, but there are 0 images. Write it as &lt;image&gt;.",
    "The video cannot be fetched: its address must begin with http://, https://, data: or file://.",
    "The image of type image/png has 3.5 times its size.",
]
BAD = {
    "starts small": ("the video is empty.", "capital"),
    "ends without a full stop": ("The video is empty", "full stop"),
    "ends with two": ("The video is empty:", "full stop"),
    "long": ("The video is " + "very " * 100 + "empty.", "500 characters"),
    "three sentences": ("It is so. It is not. It is.", "two sentences"),
    "two lines": ("The video\nis empty.", "control characters"),
    "colour": ("The video is \x1b[31mempty.", "control characters"),
    "path of a package": ("The file a/site-packages/b is missing.", "path of the server"),
    "path of a file": ("The file '/usr/lib/x.so' is missing.", "path of the server"),
    "path of a process": ("The file /proc/self/fd/3 is missing.", "path of the server"),
    "path that vLLM has found": ("The file <path> is missing.", "path of the server"),
    "object": ("The file <_io.BytesIO object at 0x7f12> is bad.", "repr of an object"),
    "type": ("The type <class 'int'> is bad.", "repr of an object"),
    "array": ("The video is array([1, 2]).", "repr of an object"),
    "tensor": ("The video is tensor([1, 2]).", "repr of an object"),
    "traceback": ("Traceback (most recent call last).", "traceback"),
    "long word": (f"The video is {'a' * 101}.", "value of more than 100 characters"),
    "long text": (f"The key '{'a b ' * 26}' is unknown.", "value of more than 100 characters"),
    "long list": (f"The shape is [{'1, ' * 40}].", "value of more than 100 characters"),
}


@pytest.mark.parametrize("sentence", GOOD)
def test_good_sentences(sentence):
    assert not find_faults(sentence)


def test_a_path_that_the_user_gave(tmp_path):
    assert not find_faults(f"The file {str(tmp_path / 'clip.mp4')!r} is not a video.")


@pytest.mark.parametrize(("sentence", "fault"), BAD.values(), ids=BAD)
def test_bad_sentences(sentence, fault):
    (found,) = find_faults(sentence)
    assert fault in found


TESTS = """
import pytest
from helpers import refusals
import vllm_videollava.decoding.errors

def raise_in_package(error_type, sentence):
    code = compile("raise error_type(sentence)", vllm_videollava.decoding.errors.__file__, "exec")
    exec(code, {**vars(vllm_videollava.decoding.errors), "error_type": error_type, "sentence": sentence})

def test_error_about_media():
    try:
        raise_in_package(vllm_videollava.decoding.errors.MediaError, "the video is empty.")
    except vllm_videollava.decoding.errors.MediaError:
        pass

def test_expected_error():
    with pytest.raises(ValueError, match="flag"):
        raise_in_package(ValueError, "The flag is wrong")
    with pytest.raises(ValueError, match="other"):
        raise ValueError("another library's sentence")

def test_answer():
    refusals.record_reply({"error": {"message": "The file /tmp/secret is missing."}})
    refusals.record_reply({"error": {"message": "The video is empty."}})
"""


def test_bad_sentences_fail_a_suite(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-p", "helpers.refusals", f"--rootdir={tmp_path}"]
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "3 passed" in process.stdout
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    for line in (
        "'the video is empty.' does not start with a capital or a number",
        "'The flag is wrong' does not end with a full stop",
        "'The file <path>/secret is missing.' has a path of the server",
    ):
        assert line in process.stdout
    refusals = (tmp_path / "build" / "refusals.txt").read_text().splitlines()
    assert refusals == [
        "The file <path>/secret is missing.",
        "The flag is wrong",
        "The video is empty.",
        "the video is empty.",
    ]
