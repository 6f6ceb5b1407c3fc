"""Whatever requests against a running server: none ends the engine or changes what others are answered.

`make attack` sends many more of them.
"""

import http.client
import json
import re
import urllib.request
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

from helpers.attack_media import image_url, video_url
from helpers.attack_requests import Requests
from helpers.attacking import rounds
from helpers.http_client import chat, part, text
from helpers.processes import count_resources, wait_until

SECONDS_TO_ANSWER = 120
MAX_MEMORY_GROWTH = 100  # MiB
# Would start more engines.
NOT_ASKED = ["/scale_elastic_ep"]


class Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Fault(NamedTuple):
    """An answer 5xx that is right, or vLLM's own (seen with 0.29 and 0.32), and why it does no harm.

    Attributes:
        answer: pattern of status and answer.
        request: pattern of path and body.
    """

    answer: str
    request: str
    why: str


KNOWN_FAULTS = [
    Fault("^502 .*cannot be fetched", "http:", "It may be different later."),
    Fault("^501 .*does not support the structured decision API", "^/v1/systemone", "It says what is the case."),
    Fault(
        '^500 .*(object has no attribute|"message":"\'function\'")',
        r"(structured_outputs|response_format|tool_choice|tools)\"|^/v1/responses",
        "A field, or a part of an input, is taken for an object of another kind; nothing is done yet.",
    ),
    Fault(
        '^500 .*"message":"list index out of range"',
        "^/v1/responses",
        "A message of the assistant has an empty list as its content; nothing is done yet.",
    ),
    Fault(
        "^500 (.*Internal server error|data: |event: )",
        r"(structured_outputs|response_format|text)\"",
        "A grammar that cannot be compiled, or allows no token that is left; the engine ends this request only.",
    ),
    Fault(
        '^500 .*"message":""',
        r"^/generative_scoring.*\\ud[89a-f]",
        "Half a character in request_id cannot be sent to the engine.",
    ),
    Fault(
        '^500 .*"message":""',
        '^/(v1/completions|invocations) .*"echo": true',
        "An empty prompt among others fails an assertion when it is echoed.",
    ),
]


DUMP = re.compile(r"PreparedImage|Traceback|site-packages|\b(array|tensor)\(| at 0x")


class Attack:
    """Sends requests, and checks each answer.

    Attributes:
        statuses: number of answers by path and status.
        faults: what is said of answers that should not have been given.
    """

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []

    def send_all(self, requests: list[Request]) -> None:
        """Send requests at the same time."""
        with ThreadPoolExecutor(len(requests)) as pool:
            list(pool.map(self.send, requests))
        assert self._ask(Request("GET", "/health", {}, b""))[0] == 200, f"The engine is dead after {show(requests)}"

    def send(self, request: Request) -> None:
        status, reply = self._ask(request)
        self.statuses[re.sub(r"(responses)/.*", r"\1/...", request.path), status] += 1
        is_error = status >= 500 or re.search(r'"code": ?5\d\d', reply)
        if (is_error and not is_known(request, status, reply)) or DUMP.search(reply):
            self.faults.append(f"{status} {reply[:1000]} for {show([request])}")

    def _ask(self, request: Request) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._address, timeout=SECONDS_TO_ANSWER)
        try:
            connection.request(request.method, request.path, request.body, dict(request.headers))
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except http.client.IncompleteRead as error:
            # A stream that is cut off by an error.
            return 500, error.partial.decode(errors="replace")
        finally:
            connection.close()


def is_known(request: Request, status: int, reply: str) -> bool:
    answer, asked = f"{status} {reply}", f"{request.path} {request.body.decode(errors='replace')}"
    return any(re.search(fault.answer, answer) and re.search(fault.request, asked) for fault in KNOWN_FAULTS)


def show(requests: list[Request]) -> str:
    bodies = [request.body.decode(errors="replace") for request in requests]
    shortened = [re.sub(r"(base64,.{20})[^\"]{100,}", r"\1...", body)[:3000] for body in bodies]
    return "\n".join(f"{one.method} {one.path} {body}" for one, body in zip(requests, shortened, strict=True))


def ask_plainly(url: str) -> dict[str, list[float]]:
    """Return log-probabilities of answers about media that the attacks have in them, too."""
    answers = {}
    for name, parts in {
        "image": [part("image", image_url())],
        "video": [part("video", video_url())],
        "text": [],
    }.items():
        status, reply = chat(url, *parts, text("What is this?"), logprobs=True, top_logprobs=5)
        assert status == 200, reply
        steps = reply["choices"][0]["logprobs"]["content"]
        answers[name] = [top["logprob"] for step in steps for top in step["top_logprobs"]]
    return answers


def own_requests(url: str) -> st.SearchStrategy[Request]:
    """Return requests with media in them and whatever in all fields."""
    headers = {"Content-Type": "application/json"}
    own = Requests(fetch(f"{url}/openapi.json"), model_of(url))
    print(f"fields { ({path: len(fields) for path, fields in own.fields.items()}) }")
    return own.requests().map(lambda drawn: Request("POST", drawn[0], headers, json.dumps(drawn[1]).encode()))


def schemathesis_requests(url: str) -> st.SearchStrategy[Request]:
    """Return what schemathesis makes of the server's description of itself, right and wrong."""
    model = model_of(url)
    schema = schemathesis.openapi.from_dict(fetch(f"{url}/openapi.json")).exclude(path=NOT_ASKED)
    strategies = []
    for operation in (result.ok() for result in schema.get_all_operations()):
        takes_something = operation.definition.raw.keys() & {"requestBody", "parameters"}
        for mode in GenerationMode if takes_something else (GenerationMode.POSITIVE,):
            strategy = operation.as_strategy(generation_mode=mode).map(lambda case: to_request(case, model))
            strategies += [strategy] * (4 if takes_something else 1)
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


def to_request(case: schemathesis.Case, model: str) -> Request:
    if isinstance(case.body, dict):
        # An answer as long as the context says no more.
        case.body.setdefault("max_tokens", 2)
        if isinstance(case.body.get("model"), str):
            case.body["model"] = model
    prepared = requests.Request(**case.as_transport_kwargs(base_url="http://server")).prepare()
    body = prepared.body or b""
    return Request(
        prepared.method, prepared.path_url, dict(prepared.headers), body if isinstance(body, bytes) else body.encode()
    )


def model_of(url: str) -> str:
    (model,) = fetch(f"{url}/v1/models")["data"]
    return model["id"]


def fetch(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


STRATEGIES = {"own": (own_requests, 220), "schemathesis": (schemathesis_requests, 60)}
"""How requests are made, and how many batches of them are sent in a round."""


@pytest.mark.parametrize(("strategy", "examples"), STRATEGIES.values(), ids=STRATEGIES)
def test_no_request_does_harm(server, strategy, examples, request):
    before = ask_plainly(server.url)
    attack = Attack(server.url)
    batches = st.lists(strategy(server.url), min_size=1, max_size=4)
    attack_again = rounds(batches, examples, attack.send_all)
    next(attack_again)
    warm = count_resources(server.process.pid)
    for _ in range(request.config.getoption("--attack-rounds")):
        next(attack_again)
    print(f"{attack.statuses.total()} requests: {dict(sorted(attack.statuses.items()))}")
    assert not attack.faults, "\n\n".join(attack.faults)
    after = ask_plainly(server.url)
    for name, logprobs in before.items():
        assert after[name] == pytest.approx(logprobs, abs=1e-3)
    print(f"warm {warm}, after {count_resources(server.process.pid)}")
    wait_until(lambda: is_no_more(count_resources(server.process.pid), warm))


def is_no_more(now: dict[str, int], warm: dict[str, int]) -> bool:
    allowance = {"memory in MiB": MAX_MEMORY_GROWTH}
    return all(value <= warm[name] + allowance.get(name, 0) for name, value in now.items())
