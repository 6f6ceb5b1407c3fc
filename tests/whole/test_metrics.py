"""A server's /metrics count what is decoded, and they add up to what was sent; the dashboard knows them all."""

import json
import re
import urllib.request
from collections import Counter

import pytest

from helpers.asking import clip, picture
from helpers.http_client import chat, data_url, image_part, part, text, video_part
from helpers.paths import ROOT
from vllm_videollava.client.server import local_server

FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]


def read_metrics(url: str) -> Counter[str]:
    """Return the values by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return Counter({name: float(value) for name, _, value in samples})


def read_names(url: str) -> set[str]:
    """Return the names of all samples, and of what has no sample yet."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        declared = re.findall(r"^# TYPE (\S+)", response.read().decode(), re.MULTILINE)
    return {*declared, *(re.sub(r"\{.*", "", name) for name in read_metrics(url))}


def send_all(url: str, first_seed: int) -> None:
    """Send two clips, one of them three times, an image, and two files that are refused."""
    first, second = (video_part(clip(seed)) for seed in (first_seed, first_seed + 1))
    for medium in (first, second, first, first, image_part(picture(first_seed))):
        assert chat(url, medium, text("What?"))[0] == 200
    for junk in (b"no video at all", clip(first_seed)[:700]):
        assert chat(url, part("video", data_url(junk, "video/mp4")), text("What?"))[0] == 400


def counted(metrics: Counter[str], name: str, **labels: str) -> float:
    pattern = re.compile(rf"videollava:{name}(\{{.*\}})?")
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value for key, value in metrics.items() if pattern.fullmatch(key) and all(label in key for label in wanted)
    )


def assert_add_up(metrics: Counter[str]) -> None:
    assert counted(metrics, "decode_seconds_count", lane="small_video", format="MP4", outcome="decoded") == 2
    assert counted(metrics, "decode_seconds_count", lane="image", format="PNG", outcome="decoded") == 1
    assert counted(metrics, "decode_seconds_count", outcome="refused") == 2
    assert counted(metrics, "decode_seconds_count") == counted(metrics, "decode_wait_seconds_count") == 5
    assert counted(metrics, "videos_total", source="cache") == 2
    assert counted(metrics, "videos_total", source="decoder") == 4
    assert counted(metrics, "decoders_busy") == 0


@pytest.mark.feature("Server", "metrics of decoding", how="`/metrics` of a server; they add up to what was sent")
def test_they_add_up(server):
    before = read_metrics(server.url)
    send_all(server.url, first_seed=9000)
    after = read_metrics(server.url)
    after.subtract(before)
    assert_add_up(after)


@pytest.mark.feature(
    "Processes and commands",
    "metrics of decoding in several API servers",
    how="`--api-server-count 2`; they add up to what was sent",
    slow=True,
)
def test_they_add_up_over_several_api_servers(checkpoint, tmp_path):
    with local_server(checkpoint, tmp_path / "log", *FLAGS, "--api-server-count", "2") as server:
        # Each server has a cache of its own, so a clip may be decoded once in each.
        send_all(server.url, first_seed=9000)
        metrics = read_metrics(server.url)
    videos = counted(metrics, "videos_total", source="cache") + counted(metrics, "videos_total", source="decoder")
    assert videos == 6
    decoded = counted(metrics, "decode_seconds_count", lane="small_video", outcome="decoded")
    assert decoded + counted(metrics, "videos_total", source="cache") == 4
    assert counted(metrics, "decode_seconds_count", outcome="refused") == 2
    assert counted(metrics, "decode_seconds_count", lane="image") == 1
    assert counted(metrics, "decoders_busy") == 0


def test_the_dashboard_shows_them(server):
    names = read_names(server.url)
    shown = set(re.findall(r"(?:videollava|vllm):\w+", (ROOT / "docs" / "grafana.json").read_text()))
    assert json.loads((ROOT / "docs" / "grafana.json").read_text())["panels"]
    assert shown <= names
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in names
        if name.startswith("videollava:") and not name.endswith("_created")
    }
    assert ours <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
