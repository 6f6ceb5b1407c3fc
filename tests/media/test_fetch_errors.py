"""Whatever goes wrong on the way to a medium, the sentence says so, and nothing of the network."""

import asyncio
import datetime
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from vllm.connections import HTTPConnection
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.multimodal.media import MediaConnector, MediaIO

from helpers.faulty_http import BODY, faulty_server
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.media.fetch_errors import REQUEST_TOO_LARGE, fetch_refusals, translate
from vllm_videollava.media.temporary_errors import FetchError


class BytesIO(MediaIO[bytes]):
    def load_bytes(self, data: bytes) -> bytes:
        return data

    def load_base64(self, media_type: str, data: str) -> bytes:
        raise NotImplementedError

    def load_file(self, filepath) -> bytes:
        return filepath.read_bytes()

    def get_max_bytes(self) -> int:
        return 1 << 20


@pytest.fixture(scope="module")
def address():
    with faulty_server() as address:
        yield address


def load(way: str, url: str, timeout: int = 5, **settings) -> bytes:
    connection = HTTPConnection()
    connector = MediaConnector(connection=connection, **settings)
    if way == "offline":
        with fetch_refusals("video", url):
            return connector.load_from_url(url, BytesIO(), fetch_timeout=timeout)

    async def load_in_server() -> bytes:
        try:
            with fetch_refusals("video", url):
                return await connector.load_from_url_async(url, BytesIO(), fetch_timeout=timeout)
        finally:
            await (await connection.get_async_client()).close()

    return asyncio.run(load_in_server())


def refusal(error_type: type[Exception], way: str, url: str, **settings) -> str:
    with pytest.raises(error_type) as error:
        load(way, url, **settings)
    assert type(error.value) is error_type
    assert error.value.url == url
    return str(error.value)


both_ways = pytest.mark.parametrize("way", ["server", "offline"])


@both_ways
def test_what_is_right_is_fetched(way, address, tmp_path):
    assert load(way, f"{address}good") == BODY
    (tmp_path / "clip").write_bytes(BODY)
    assert load(way, (tmp_path / "clip").as_uri(), allowed_local_media_path=str(tmp_path)) == BODY


CANNOT = "The video cannot be fetched: "
STATUSES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    407: "Proxy Authentication Required",
    410: "Gone",
    418: "I'm a Teapot",
    451: "Unavailable For Legal Reasons",
}
REDIRECTS_ELSEWHERE = "its server redirects to an address that is neither http nor https."
MALFORMED = "its address, or one that its server redirects to, is malformed."
COMPRESSION = "its server's Content-Encoding is not supported, or the compressed data are damaged."
TOO_LARGE = "it is too large; the limit is 1048576 bytes (VIDEO_LLAVA_MAX_MEDIA_MB)."
PERMANENT = {
    **{str(status): f"its server answers with HTTP {status} ({phrase})." for status, phrase in STATUSES.items()},
    "499": "its server answers with HTTP 499.",
    "to-404": "its server answers with HTTP 404 (Not Found).",
    "loop": "its server redirects too often.",
    "to-file": REDIRECTS_ELSEWHERE,
    "to-ftp": REDIRECTS_ELSEWHERE,
    "to-data": REDIRECTS_ELSEWHERE,
    "to-script": REDIRECTS_ELSEWHERE,
    "to-bad-name": MALFORMED,
    "to-bad-port": MALFORMED,
    "to-bad-address": MALFORMED,
    "bad-gzip": COMPRESSION,
    "half-deflate": COMPRESSION,
    "damaged-gzip": COMPRESSION,
    "large": TOO_LARGE,
    "large-of-unknown-length": TOO_LARGE,
}


@both_ways
@pytest.mark.parametrize("path", PERMANENT)
def test_what_is_permanent_is_refused(way, address, path):
    assert refusal(MediaError, way, address + path) == CANNOT + PERMANENT[path]


TRANSIENT_STATUSES = {
    408: "Request Timeout",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@both_ways
@pytest.mark.parametrize("status", TRANSIENT_STATUSES)
def test_statuses_that_are_transient(way, address, status):
    sentence = f"its server answers with HTTP {status} ({TRANSIENT_STATUSES[status]}); try again later."
    assert refusal(FetchError, way, f"{address}{status}") == CANNOT + sentence


NO_ANSWER = "its server did not send a complete HTTP response; check the address, or try again later."


NO_ANSWERS = ["close", "reset", "silent", "to-refused"]
HALF_ANSWERS = ["short", "short-chunk", "bad-chunk", "stalled"]
NO_HTTP = ["ssh", "binary", "long-header", "many-headers"]


@both_ways
@pytest.mark.parametrize("path", NO_ANSWERS + HALF_ANSWERS + NO_HTTP)
def test_one_sentence_for_all_that_a_network_can_do(way, address, path):
    assert refusal(FetchError, way, address + path, timeout=1) == CANNOT + NO_ANSWER


@both_ways
@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "https://127.0.0.1:1/", "http://no-such-name.invalid/x"])
def test_servers_that_are_not_there(way, url):
    assert refusal(FetchError, way, url) == CANNOT + NO_ANSWER


@both_ways
def test_a_server_without_tls(way, address):
    assert refusal(FetchError, way, address.replace("http:", "https:")) == CANNOT + NO_ANSWER


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(1))
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@both_ways
def test_a_certificate_that_nobody_trusts(way, self_signed):
    with faulty_server(self_signed) as address:
        sentence = refusal(MediaError, way, f"{address}good")
    assert sentence == CANNOT + "its server's certificate is not valid or not trusted."


BAD_ADDRESSES = [
    "http://",
    "http:///x",
    "http://[::1",
    "http://127.0.0.1:99999/",
    "http://exa mple/x",
    "http://a..b/x",
    "http://%zz/",
    "http://127.0.0.1\0/",
    f"http://{'a' * 70}.example/",
    "http://\ud800/",
    " http://127.0.0.1/",
]


@both_ways
@pytest.mark.parametrize("url", BAD_ADDRESSES)
def test_addresses_that_are_malformed(way, url):
    assert refusal(MediaError, way, url) == CANNOT + MALFORMED


SCHEMES = [
    "ftp://10.1.2.3/a",
    "example.org/a.mp4",
    "/clips/a.mp4",
    "C:\\clips\\a.mp4",
    "httpx://a/b",
    "s3://a/b",
    "",
    "A" * 99,
]


@both_ways
@pytest.mark.parametrize("url", SCHEMES)
def test_other_schemes(way, url):
    sentence = "its address must begin with http://, https://, data: or file://."
    assert refusal(MediaError, way, url) == CANNOT + sentence


@both_ways
def test_domains_that_are_not_allowed(way, address):
    settings = {"allowed_media_domains": ["example.org"]}
    sentence = "--allowed-media-domains does not allow its host."
    assert refusal(MediaError, way, f"{address}good", **settings) == CANNOT + sentence


@both_ways
def test_vllms_own_limit(way, address, monkeypatch):
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "1")
    sentence = "it is too large; the limit is 1048576 bytes (VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB)."
    assert refusal(MediaError, way, f"{address}large") == CANNOT + sentence


@pytest.mark.skipif(not REQUEST_TOO_LARGE, reason="vLLM has this limit from 0.33 on")
def test_the_limit_of_a_whole_request():
    sentence = str(translate("image", "http://example.org/", REQUEST_TOO_LARGE("Request media downloads exceed 5.")))
    assert sentence.endswith("media are too large in total (VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB).")


FILE = "The video file cannot be read, or --allowed-local-media-path does not allow it."


@both_ways
@pytest.mark.parametrize("name", ["none", "", ".", "../outside", "none\0", "a" * 300])
def test_files_that_cannot_be_read(way, tmp_path, name):
    settings = {"allowed_local_media_path": str(tmp_path)}
    assert refusal(MediaError, way, f"file://{tmp_path}/{name}", **settings) == FILE
    assert refusal(MediaError, way, f"FILE://{tmp_path}/{name}") == FILE


@both_ways
@pytest.mark.parametrize("scheme", ["http://", "HTTPS://", "file:///"])
def test_long_addresses_are_not_parsed(way, scheme, monkeypatch):
    monkeypatch.setattr("vllm.multimodal.media.connector.parse_url", None)
    url = scheme + "a" * 50_000_000
    sentence = f"its address has {len(url)} characters; the limit is 8192."
    assert refusal(MediaError, way, url) == CANNOT + sentence


@both_ways
def test_the_longest_address(way, address):
    url = f"{address}good?".ljust(8192, "a")
    assert load(way, url) == BODY


@both_ways
@pytest.mark.parametrize("path", ["404", "503", "close"])
def test_secrets_and_lines_stay_out_of_the_log(way, address, path):
    url = address.replace("//", "//user:password@") + path + "?signature=secret#token=secret"
    with pytest.raises((MediaError, FetchError)) as error:
        load(way, url)
    detail = error.value.detail
    assert address + path in detail
    assert "secret" not in detail
    assert "password" not in detail
    assert "\n" not in detail
    assert len(detail) < 700


def test_details_are_one_short_line():
    error = translate("video", "http://a/\nWARNING forged", OSError("line\nline\r\x1b[31m" + "x" * 10_000))
    assert error.detail.isprintable()
    assert len(error.detail) < 700


@pytest.mark.parametrize("error", [TypeError("a"), AssertionError(), KeyError("a"), MemoryError(), ValueError("a")])
def test_what_is_not_about_fetching_passes(error):
    assert translate("video", "http://a/", error) is None
    with pytest.raises(type(error)), fetch_refusals("video", "http://a/"):
        raise error


def test_refusals_pass_as_they_are():
    with pytest.raises(MediaError, match=r"^The video is empty\.$") as error, fetch_refusals("video", "http://a/"):
        raise MediaError("The video is empty.")
    assert error.value.url == "http://a/"


def test_what_clients_get():
    answers = [create_error_response(error_type("It fails.")).error for error_type in (MediaError, FetchError)]
    assert [(answer.code, answer.type, answer.message) for answer in answers] == [
        (400, "BadRequestError", "It fails."),
        (502, "Bad Gateway", "It fails."),
    ]
