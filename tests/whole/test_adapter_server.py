"""A running server swaps adapters in by name, refuses those that it cannot swap, and lives."""

import json
import urllib.request

import pytest

from helpers.fine_tunes import change_adapter, write_lora
from helpers.http_client import post
from vllm_videollava.client.server import local_server

FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--enable-lora", "--max-lora-rank", "8"]


@pytest.fixture(scope="module")
def tuned(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("tuned")
    return {
        name: write_lora(root / name, checkpoint, seed=seed, projector=name == "own projector").folder
        for seed, name in enumerate(["own projector", "mine", "later", "too wide"])
    }


def load(url, name, folder) -> None:
    body = json.dumps({"lora_name": name, "lora_path": str(folder)}).encode()
    request = urllib.request.Request(f"{url}/v1/load_lora_adapter", body, {"Content-Type": "application/json"})
    # The answer is a sentence, not JSON.
    with urllib.request.urlopen(request) as response:
        assert b"success" in response.read()


def ask(url, model):
    message = {"role": "user", "content": "What is a dog?"}
    return post(url, "/v1/chat/completions", model=model, messages=[message], max_tokens=4, temperature=0)


def test_adapters_at_the_start_and_later(checkpoint, tuned, tmp_path):
    change_adapter(tuned["too wide"], widen)
    modules = ["--lora-modules", f"mine={tuned['mine']}"]
    log = tmp_path / "log"
    with local_server(checkpoint, log, *FLAGS, *modules, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as server:
        load(server.url, "later", tuned["later"])
        answers = {}
        for model in (str(checkpoint), "mine", "later"):
            status, reply = ask(server.url, model)
            assert status == 200
            answers[model] = reply["choices"][0]["message"]["content"]
        assert len(set(answers.values())) == 3
        for folder, sentence in {
            tuned["own projector"]: "has another projector than the served model",
            tuned["too wide"]: "the adapter belongs to another model",
            "/nowhere": "is not a folder",
            "some/repository": "is no folder, and cannot be downloaded",
        }.items():
            status, reply = post(server.url, "/v1/load_lora_adapter", lora_name="bad", lora_path=str(folder))
            assert (status, reply["error"]["type"]) == (400, "BadRequestError")
            assert sentence in reply["error"]["message"]
        assert ask(server.url, "mine")[1]["choices"][0]["message"]["content"] == answers["mine"]


def widen(tensors) -> None:
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = tensors[name].repeat(1, 2)


def test_a_server_that_is_to_swap_another_projector_in_does_not_start(checkpoint, tuned, tmp_path):
    modules = ["--lora-modules", f"own={tuned['own projector']}"]
    with (
        pytest.raises(RuntimeError, match="has another projector than the served model, and vLLM cannot swap it"),
        local_server(checkpoint, tmp_path / "log", *FLAGS, *modules),
    ):
        pytest.fail("The server has started.")
