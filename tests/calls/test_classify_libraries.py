"""What `classify` says about exceptions that the libraries themselves raised, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import anthropic
import botocore.config
import botocore.session
import grpc
import httpx
import httpx2
import openai
import pytest
import redis
import requests
import urllib3

from resilience.calls.classify import ErrorInfo, ErrorKind, classify
from tests.calls.flaky_server import FlakyServer, flaky_server, refused_url

SAFE, UNSURE, PERMANENT = (True, False), (True, True), (False, False)
TIMEOUT, CONNECTION, INVALID, TLS = ErrorKind.TIMEOUT, ErrorKind.CONNECTION, ErrorKind.INVALID_REQUEST, ErrorKind.TLS

#: Seconds a client waits: for an answer that comes, however busy the machine is, and for one that never does.
PATIENT, HASTY = 60.0, 0.3


@pytest.fixture(scope="module")
def server() -> Iterator[FlakyServer]:
    """The server that fails on request."""
    with flaky_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _plain_answers(server: FlakyServer) -> None:
    server.headers, server.body = {}, {}


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that connecting to it hangs."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def raised(call: Callable[..., object], *args: Any, **kwargs: Any) -> Exception:
    """Return what the call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the test looks at it
        call(*args, **kwargs)
    return caught.value


def judged(exc: BaseException) -> tuple[ErrorKind, tuple[bool, bool]]:
    info = classify(exc)
    return info.kind, (info.transient, info.maybe_executed)


def with_requests(url: str, timeout: float = PATIENT) -> object:
    with requests.Session() as session:
        session.trust_env = False
        response = session.get(url, timeout=timeout)
        response.raise_for_status()
        return response.content


def with_httpx(url: str, timeout: float = PATIENT) -> object:
    with httpx.Client(timeout=timeout, trust_env=False) as client:
        return client.get(url, follow_redirects=True).raise_for_status()


def with_httpx2(url: str, timeout: float = PATIENT) -> object:
    with httpx2.Client(timeout=timeout, trust_env=False) as client:
        return client.get(url, follow_redirects=True).raise_for_status()


def with_urllib3(url: str, timeout: float = PATIENT) -> object:
    with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
        return pool.request("GET", url)


def with_urllib3_retries(url: str, timeout: float = PATIENT) -> object:
    with urllib3.PoolManager(retries=urllib3.Retry(1, status_forcelist=[503]), timeout=timeout) as pool:
        return pool.request("GET", url)


def with_urllib(url: str, timeout: float = PATIENT) -> object:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout) as response:
        return response.read()


def with_aiohttp(url: str, timeout: float = PATIENT) -> object:
    async def get() -> bytes:
        limits = aiohttp.ClientTimeout(sock_connect=timeout, sock_read=timeout)
        async with aiohttp.ClientSession(timeout=limits) as session, session.get(url, raise_for_status=True) as response:
            return await response.read()

    return asyncio.run(get())


CLIENTS = [with_requests, with_httpx, with_httpx2, with_urllib3, with_urllib, with_aiohttp]


@pytest.mark.parametrize("client", [*CLIENTS, with_urllib3_retries])
def test_classify__a_refused_connection_was_never_sent(client: Callable[[str], object]) -> None:
    """Nothing listens there: worth another try, and nothing can have been done."""
    error = raised(client, refused_url())

    assert judged(error) == (CONNECTION, SAFE)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("behaviour", ["reset", "close", "cut"])
def test_classify__a_lost_connection_may_have_been_executed(
    client: Callable[[str], object], behaviour: str, server: FlakyServer
) -> None:
    """The server had the request when the connection went away."""
    error = raised(client, f"{server.url}/{behaviour}")

    assert judged(error) == (CONNECTION, UNSURE)


@pytest.mark.parametrize("client", CLIENTS)
def test_classify__a_silent_server_may_have_executed(client: Callable[[str], object], server: FlakyServer) -> None:
    """A time-out while reading says nothing about what the server did."""
    error = raised(client, f"{server.url}/silence", HASTY)

    assert judged(error) == (TIMEOUT, UNSURE)


@pytest.mark.parametrize("client", [with_requests, with_httpx, with_httpx2, with_urllib3])
def test_classify__a_timeout_while_connecting_was_never_sent(client: Callable[[str], object], deaf_port: int) -> None:
    """A time-out while connecting came before the request."""
    error = raised(client, f"http://127.0.0.1:{deaf_port}/", HASTY)

    assert judged(error) == (TIMEOUT, SAFE)


@pytest.mark.parametrize("client", CLIENTS)
def test_classify__tls_to_a_server_without_it_is_permanent(client: Callable[[str], object], server: FlakyServer) -> None:
    """A wrong certificate or port is a mistake in the configuration; time does not cure it."""
    error = raised(client, server.url.replace("http:", "https:"))

    assert judged(error) == (TLS, PERMANENT)


@pytest.mark.parametrize("client", [with_requests, with_httpx, with_httpx2])
@pytest.mark.parametrize("address", ["nonsense://host/", "http://", "/loop", "/undecodable"])
def test_classify__a_wrong_request_is_permanent(client: Callable[[str], object], address: str, server: FlakyServer) -> None:
    """A wrong address, endless redirects and undecodable bodies stay as they are."""
    error = raised(client, f"{server.url}{address}" if address.startswith("/") else address)

    assert judged(error) == (INVALID, PERMANENT)


STATUSES = {
    400: (INVALID, PERMANENT),
    401: (ErrorKind.AUTH, PERMANENT),
    402: (ErrorKind.QUOTA, PERMANENT),
    403: (ErrorKind.PERMISSION, PERMANENT),
    404: (ErrorKind.NOT_FOUND, PERMANENT),
    408: (TIMEOUT, UNSURE),
    409: (ErrorKind.CONFLICT, PERMANENT),
    413: (INVALID, PERMANENT),
    418: (INVALID, PERMANENT),
    422: (INVALID, PERMANENT),
    423: (ErrorKind.CONFLICT, SAFE),
    429: (ErrorKind.RATE_LIMIT, SAFE),
    500: (ErrorKind.SERVER_ERROR, UNSURE),
    501: (ErrorKind.SERVER_ERROR, PERMANENT),
    502: (ErrorKind.SERVER_ERROR, UNSURE),
    503: (ErrorKind.SERVER_ERROR, SAFE),
    504: (TIMEOUT, UNSURE),
    529: (ErrorKind.OVERLOADED, SAFE),
    599: (ErrorKind.SERVER_ERROR, UNSURE),
}


@pytest.mark.parametrize("client", [with_requests, with_httpx, with_httpx2, with_urllib, with_aiohttp])
@pytest.mark.parametrize("status", STATUSES)
def test_classify__reads_the_status(client: Callable[[str], object], status: int, server: FlakyServer) -> None:
    """Every client's status error is classified by its status."""
    error = raised(client, f"{server.url}/status/{status}")

    assert judged(error) == STATUSES[status]
    assert classify(error).status == status
    close(error)


@pytest.mark.parametrize("client", [with_requests, with_httpx, with_httpx2, with_urllib, with_aiohttp])
@pytest.mark.parametrize(
    ("status", "kind"), [(429, ErrorKind.RATE_LIMIT), (503, ErrorKind.SERVER_ERROR), (403, ErrorKind.RATE_LIMIT)]
)
def test_classify__reads_retry_after(client: Callable[[str], object], status: int, kind: ErrorKind, server: FlakyServer) -> None:
    """Retry-After is read from every client's response, and makes a 403 a limit."""
    error = raised(client, f"{server.url}/status/{status}?Retry-After=7")

    info = classify(error)

    assert (info.kind, info.transient, info.retry_after) == (kind, True, 7)
    close(error)


@pytest.mark.parametrize("client", [with_requests, with_httpx, with_httpx2])
def test_classify__reads_a_billing_code_from_a_body_that_was_read(client: Callable[[str], object], server: FlakyServer) -> None:
    """A 429 that asks for money is no rate limit, also through a plain HTTP client."""
    server.body = {"error": {"code": "insufficient_quota", "type": "insufficient_quota"}}

    info = classify(raised(client, f"{server.url}/status/429"))

    assert info == ErrorInfo(ErrorKind.QUOTA, status=429, code="insufficient_quota")


def test_classify__requests_retry_error_is_what_it_wraps(server: FlakyServer) -> None:
    """An adapter's exhausted retries are transient, as the responses were."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=urllib3.Retry(1, status_forcelist=[503])))

    error = raised(session.get, f"{server.url}/status/503")

    assert isinstance(error, requests.exceptions.RetryError)
    assert classify(error).transient
    session.close()


def test_classify__raw_http_client(server: FlakyServer) -> None:
    """The standard library's own errors are known too."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENT)
    connection.request("GET", "/garbage")

    garbage = raised(connection.getresponse)
    connection.close()

    assert judged(garbage) == (CONNECTION, UNSURE)


def test_classify__a_certificate_nobody_signed(server: FlakyServer) -> None:
    """Certificate errors of the ssl module are permanent."""
    assert judged(ssl.SSLCertVerificationError(1, "self-signed")) == (TLS, PERMANENT)
    assert judged(ssl.SSLEOFError(8, "EOF")) == (CONNECTION, UNSURE)


# openai and anthropic


def openai_client(url: str, timeout: float) -> Any:
    return openai.OpenAI(api_key="sk-test", base_url=url, max_retries=0, timeout=timeout)


def anthropic_client(url: str, timeout: float) -> Any:
    return anthropic.Anthropic(api_key="sk-test", base_url=url, max_retries=0, timeout=timeout)


def ask_openai(url: str, timeout: float = PATIENT) -> object:
    with openai_client(url, timeout) as client:
        return client.get("", cast_to=object)


def ask_anthropic(url: str, timeout: float = PATIENT) -> object:
    with anthropic_client(url, timeout) as client:
        return client.get("", cast_to=object)


MODEL_APIS = [ask_openai, ask_anthropic]


@pytest.mark.parametrize("ask", MODEL_APIS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503, 504, 529])
def test_classify__model_apis_by_status(ask: Callable[[str], object], status: int, server: FlakyServer) -> None:
    """The status errors of both clients follow the table."""
    error = raised(ask, f"{server.url}/status/{status}")

    assert isinstance(error, (openai.APIStatusError, anthropic.APIStatusError))
    assert judged(error) == STATUSES[status]


@pytest.mark.parametrize("ask", MODEL_APIS)
def test_classify__model_apis_conflict_is_a_lock(ask: Callable[[str], object], server: FlakyServer) -> None:
    """Their 409 is a lock that was not free in time, which may be free later."""
    error = raised(ask, f"{server.url}/status/409")

    assert judged(error) == (ErrorKind.CONFLICT, SAFE)


@pytest.mark.parametrize("ask", MODEL_APIS)
@pytest.mark.parametrize(
    ("behaviour", "expected"), [("silence", (TIMEOUT, UNSURE)), ("reset", (CONNECTION, UNSURE)), ("close", (CONNECTION, UNSURE))]
)
def test_classify__model_apis_without_an_answer(
    ask: Callable[[str], object], behaviour: str, expected: object, server: FlakyServer
) -> None:
    """No answer from a model's server leaves open what it did."""
    error = raised(ask, f"{server.url}/{behaviour}", HASTY if behaviour == "silence" else PATIENT)

    assert judged(error) == expected


@pytest.mark.parametrize("ask", MODEL_APIS)
def test_classify__model_apis_behind_the_connection_error(ask: Callable[[str], object], server: FlakyServer) -> None:
    """Both hide refused connections and TLS mistakes in one class; what is behind it tells them apart."""
    refused = raised(ask, refused_url())
    tls = raised(ask, server.url.replace("http:", "https:"))

    assert judged(refused) == (CONNECTION, SAFE)
    assert judged(tls) == (TLS, PERMANENT)


@pytest.mark.parametrize("code", ["insufficient_quota", "credit_balance_exhausted", "project_spend_limit_exceeded"])
def test_classify__openai_quota_is_permanent(code: str, server: FlakyServer) -> None:
    """The rate-limit class with a billing code is not a rate limit."""
    server.body = {"error": {"message": "You exceeded your current quota", "code": code, "type": "insufficient_quota"}}

    error = raised(ask_openai, f"{server.url}/status/429?retry-after=1")

    assert isinstance(error, openai.RateLimitError)
    assert judged(error) == (ErrorKind.QUOTA, PERMANENT)
    assert classify(error).code == code


def test_classify__anthropic_spend_limit_is_permanent(server: FlakyServer) -> None:
    """A spend limit comes in the rate-limit class, with a code of its own."""
    details = {"error_code": "enforced_spend_limit_reached"}
    server.body = {"type": "error", "error": {"type": "rate_limit_error", "message": "limit", "details": details}}

    error = raised(ask_anthropic, f"{server.url}/status/429")

    assert isinstance(error, anthropic.RateLimitError)
    assert judged(error) == (ErrorKind.QUOTA, PERMANENT)


@pytest.mark.parametrize("ask", MODEL_APIS)
def test_classify__model_apis_retry_after_ms_comes_first(ask: Callable[[str], object], server: FlakyServer) -> None:
    """The exact header wins over the one in whole seconds."""
    server.headers = {"retry-after": "9", "retry-after-ms": "1500"}

    error = raised(ask, f"{server.url}/status/429")

    assert classify(error).retry_after == 1.5


@pytest.mark.parametrize("ask", MODEL_APIS)
@pytest.mark.parametrize(("status", "advice"), [(503, "false"), (400, "true")])
def test_classify__model_apis_advice_decides(ask: Callable[[str], object], status: int, advice: str, server: FlakyServer) -> None:
    """A server that says whether to retry is believed."""
    server.headers = {"x-should-retry": advice}

    error = raised(ask, f"{server.url}/status/{status}")

    assert classify(error).transient is (advice == "true")


def test_classify__openai_error_in_the_middle_of_a_stream() -> None:
    """An error event carries a code and no status."""
    request = httpx2.Request("POST", "http://localhost/")
    overloaded = openai.APIError("server error", request, body={"code": "server_error", "message": "x"})
    unpaid = openai.APIError("quota", request, body={"code": "insufficient_quota", "message": "x"})

    assert judged(overloaded) == (ErrorKind.SERVER_ERROR, UNSURE)
    assert judged(unpaid) == (ErrorKind.QUOTA, PERMANENT)


# botocore


def ask_aws(url: str, timeout: float = PATIENT) -> object:
    config = botocore.config.Config(connect_timeout=timeout, read_timeout=timeout, retries={"max_attempts": 0}, proxies={})
    client = botocore.session.Session().create_client(
        "sqs", "eu-west-1", endpoint_url=url, aws_access_key_id="a", aws_secret_access_key="b", config=config
    )
    try:
        return client.list_queues()
    finally:
        client.close()


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("ThrottlingException", 400, (ErrorKind.RATE_LIMIT, SAFE)),
        ("SlowDown", 503, (ErrorKind.RATE_LIMIT, SAFE)),
        ("RequestTimeout", 400, (TIMEOUT, UNSURE)),
        ("ExpiredTokenException", 403, (ErrorKind.AUTH, PERMANENT)),
        ("AccessDeniedException", 403, (ErrorKind.PERMISSION, PERMANENT)),
        ("ResourceNotFoundException", 400, (ErrorKind.NOT_FOUND, PERMANENT)),
        ("ValidationException", 400, (INVALID, PERMANENT)),
        ("InternalFailure", 500, (ErrorKind.SERVER_ERROR, UNSURE)),
        ("Whatever", 418, (INVALID, PERMANENT)),
    ],
)
def test_classify__aws_by_code_before_status(code: str, status: int, expected: object, server: FlakyServer) -> None:
    """AWS throttles with HTTP 400 too, so the code comes first."""
    server.body = {"__type": f"com.amazonaws.sqs#{code}", "message": "no"}
    server.headers = {"Content-Type": "application/x-amz-json-1.0"}

    error = raised(ask_aws, f"{server.url}/status/{status}")

    assert isinstance(error, botocore.exceptions.ClientError)
    assert judged(error) == expected
    assert classify(error).code == code


@pytest.mark.parametrize(
    ("behaviour", "expected"), [("silence", (TIMEOUT, UNSURE)), ("reset", (CONNECTION, UNSURE)), ("close", (CONNECTION, UNSURE))]
)
def test_classify__aws_without_an_answer(behaviour: str, expected: object, server: FlakyServer) -> None:
    """Lost answers of AWS leave open what was done."""
    error = raised(ask_aws, f"{server.url}/{behaviour}", HASTY if behaviour == "silence" else PATIENT)

    assert judged(error) == expected


def test_classify__aws_connections(server: FlakyServer) -> None:
    """A refused endpoint is safe to call again; a TLS mistake is not worth it."""
    refused = raised(ask_aws, refused_url())
    tls = raised(ask_aws, server.url.replace("http:", "https:"))

    assert judged(refused) == (CONNECTION, SAFE)
    assert judged(tls) == (TLS, PERMANENT)


# grpc


GRPC = {
    grpc.StatusCode.UNAVAILABLE: (CONNECTION, SAFE),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ErrorKind.RATE_LIMIT, SAFE),
    grpc.StatusCode.DEADLINE_EXCEEDED: (TIMEOUT, UNSURE),
    grpc.StatusCode.ABORTED: (ErrorKind.CONFLICT, SAFE),
    grpc.StatusCode.UNAUTHENTICATED: (ErrorKind.AUTH, PERMANENT),
    grpc.StatusCode.PERMISSION_DENIED: (ErrorKind.PERMISSION, PERMANENT),
    grpc.StatusCode.INVALID_ARGUMENT: (INVALID, PERMANENT),
    grpc.StatusCode.NOT_FOUND: (ErrorKind.NOT_FOUND, PERMANENT),
    grpc.StatusCode.CANCELLED: (ErrorKind.CANCELLED, PERMANENT),
}


@pytest.fixture(scope="module")
def grpc_server() -> Iterator[str]:
    """A gRPC server whose one method ends with the status that its request names."""
    from concurrent.futures import ThreadPoolExecutor

    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        name, details, pushback = request.decode().split("|")
        if pushback:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
        context.abort(grpc.StatusCode[name], details)
        raise AssertionError

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(fail)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def ask_grpc(address: str, name: str, details: str = "no", pushback: str = "") -> object:
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary("/test.Service/Fail")(f"{name}|{details}|{pushback}".encode(), timeout=PATIENT)


@pytest.mark.parametrize("status", GRPC, ids=lambda status: status.name)
def test_classify__grpc_by_status(status: grpc.StatusCode, grpc_server: str) -> None:
    """An RpcError is classified by its status code."""
    error = raised(ask_grpc, grpc_server, status.name)

    assert judged(error) == GRPC[status]
    assert classify(error).code == status.name


def test_classify__grpc_in_asyncio(grpc_server: str) -> None:
    """The asynchronous client's error has no base of its own and is known too."""

    async def ask() -> None:
        async with grpc.aio.insecure_channel(grpc_server) as channel:
            await channel.unary_unary("/test.Service/Fail")(b"ABORTED|no|")

    error = raised(asyncio.run, ask())

    assert judged(error) == (ErrorKind.CONFLICT, SAFE)


def test_classify__grpc_message_that_is_too_large(grpc_server: str) -> None:
    """RESOURCE_EXHAUSTED is also what too large a message gets, which no wait makes smaller."""
    error = raised(ask_grpc, grpc_server, "RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)")

    assert judged(error) == (INVALID, PERMANENT)


@pytest.mark.parametrize(("pushback", "transient", "wait"), [("2500", True, 2.5), ("-1", False, None)])
def test_classify__grpc_pushback(pushback: str, transient: bool, wait: float | None, grpc_server: str) -> None:
    """The server's push-back is a wait, or forbids to come back at all."""
    info = classify(raised(ask_grpc, grpc_server, "UNAVAILABLE", pushback=pushback))

    assert (info.transient, info.retry_after) == (transient, wait)


def test_classify__grpc_without_a_server() -> None:
    """Nobody listens: worth another try."""
    error = raised(ask_grpc, refused_url().removeprefix("http://"), "x")

    assert judged(error) == (CONNECTION, SAFE)


# redis


def test_classify__redis_connections(server: FlakyServer) -> None:
    """A refused connection was never sent; one that breaks while reading may have been executed."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = raised(ping_redis, mute.getsockname()[1], HASTY)
        hanging_up = threading.Thread(target=lambda: [mute.accept()[0].close() for _ in range(2)])
        hanging_up.start()
        lost = raised(ping_redis, mute.getsockname()[1])
        hanging_up.join()
    refused = raised(ping_redis, mute_port())

    assert judged(refused) == (CONNECTION, SAFE)
    assert judged(silent) == (TIMEOUT, UNSURE)
    assert judged(lost) == (CONNECTION, UNSURE)


def test_classify__redis_does_not_blame_what_was_being_handled() -> None:
    """A refused connection elsewhere, being handled when redis fails, says nothing about redis."""
    try:
        raise ConnectionRefusedError(111, "Connection refused")
    except ConnectionRefusedError:
        error = raised(_raise, redis.ConnectionError("Connection closed by server."))

    assert judged(error) == (CONNECTION, UNSURE)


def ping_redis(port: int, timeout: float = PATIENT) -> object:
    with redis.Redis(port=port, socket_timeout=timeout, retry=None, protocol=2) as client:
        return client.ping()


def mute_port() -> int:
    return int(refused_url().rpartition(":")[2])


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("LOADING Redis is loading the dataset in memory", (ErrorKind.OVERLOADED, SAFE)),
        ("READONLY You can't write against a read only replica.", (CONNECTION, SAFE)),
        ("CLUSTERDOWN The cluster is down", (CONNECTION, SAFE)),
        ("TRYAGAIN Multiple keys request during rehashing", (CONNECTION, SAFE)),
        ("NOAUTH Authentication required.", (ErrorKind.AUTH, PERMANENT)),
        ("WRONGPASS invalid username-password pair or user is disabled.", (ErrorKind.AUTH, PERMANENT)),
        ("NOPERM this user has no permissions", (ErrorKind.PERMISSION, PERMANENT)),
        ("OOM command not allowed when used memory > 'maxmemory'.", (ErrorKind.SERVER_ERROR, PERMANENT)),
        ("NOSCRIPT No matching script.", (ErrorKind.NOT_FOUND, PERMANENT)),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", (INVALID, PERMANENT)),
    ],
)
def test_classify__redis_replies(reply: str, expected: object) -> None:
    """The server's error replies, as redis-py parses them, are told apart although their bases lie."""
    from redis._parsers import BaseParser

    error = BaseParser.parse_error(reply)

    assert judged(error) == expected


def test_classify__redis_exhausted_pool() -> None:
    """No free connection is this process's own overload."""
    pool = redis.ConnectionPool(max_connections=1, port=mute_port())
    pool._in_use_connections.add(pool.make_connection())

    assert judged(raised(pool.get_connection)) == (ErrorKind.OVERLOADED, SAFE)


def close(error: Exception) -> None:
    """Close the response that urllib's error keeps open."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
