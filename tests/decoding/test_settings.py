"""Settings come from the environment, are checked, and stand in the README as they stand in the code."""

import importlib.util
import re
from dataclasses import fields

import pytest

from helpers.paths import ROOT
from vllm_videollava.decoding.settings import Settings, read_settings, variable

FIELDS = [field.name for field in fields(Settings)]
NUMBERS = [field for field in FIELDS if field != "decoder"]


def test_defaults(monkeypatch):
    for field in FIELDS:
        monkeypatch.delenv(variable(field), raising=False)
    assert read_settings() == Settings()


@pytest.mark.parametrize("field", NUMBERS)
def test_each_is_set_by_its_variable(monkeypatch, field):
    monkeypatch.setenv(variable(field), "7")
    assert getattr(read_settings(), field) == 7


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "1e3"])
def test_what_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("VIDEO_LLAVA_MAX_FRAMES", value)
    with pytest.raises(
        ValueError, match=rf"^VIDEO_LLAVA_MAX_FRAMES is '{re.escape(value)}'; it must be a whole number of at least 1\."
    ):
        read_settings()


def test_zero_is_only_for_what_it_means_something_for(monkeypatch):
    for field in NUMBERS:
        monkeypatch.setenv(variable(field), "0")
        read_settings.cache_clear()
        if field in ("decode_workers", "decoded_cache_mb"):
            assert getattr(read_settings(), field) == 0
        else:
            with pytest.raises(ValueError, match=variable(field)):
                read_settings()
        monkeypatch.delenv(variable(field))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_the_decoder_is_a_choice(monkeypatch, decoder):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "decord" or None)
    monkeypatch.setenv("VIDEO_LLAVA_DECODER", decoder)
    assert read_settings().decoder == decoder


@pytest.mark.parametrize("value", ["", "PyAV", "opencv", "7"])
def test_another_decoder_is_refused(monkeypatch, value):
    monkeypatch.setenv("VIDEO_LLAVA_DECODER", value)
    with pytest.raises(ValueError, match=rf"^VIDEO_LLAVA_DECODER is '{value}'; it must be pyav or decord\.$"):
        read_settings()


def test_a_decoder_that_is_not_installed_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert read_settings().decoder == "pyav"
    read_settings.cache_clear()
    monkeypatch.setenv("VIDEO_LLAVA_DECODER", "decord")
    sentence = "VIDEO_LLAVA_DECODER is 'decord', which is not installed; run pip install 'vllm-videollava[decord]'."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        read_settings()


def test_the_readmes_table():
    rows = re.findall(r"^\| `(VIDEO_LLAVA_\w+)` \| (\w+) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    described = dict(re.findall(r"^        (\w+): ([^.]+)\.$", Settings.__doc__, re.MULTILINE))
    defaults = Settings()
    assert rows == [(variable(field), str(getattr(defaults, field)), described[field]) for field in FIELDS]
