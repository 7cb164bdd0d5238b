from __future__ import annotations

import functools
import json
import logging
import re
import string
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from django.views.debug import SafeExceptionReporterFilter
from hypothesis import example, given
from hypothesis import strategies as st

import resilience
from resilience.calls.batches import batch_with_retry
from resilience.calls.retries import retry
from resilience.circuits.breaker import CircuitBreaker
from resilience.redaction import describe_exception, redact

MASK = "[redacted]"
#: Names under which people and frameworks keep secrets; the first line are Django's.
NAMES = ["API_KEY", "AUTH_TOKEN", "SECRET_KEY", "EMAIL_HOST_PASSWORD", "SIGNATURE", "HTTP_COOKIE"]
NAMES += [
    "password",
    "passwd",
    "pwd",
    "token",
    "access_token",
    "apiKey",
    "api-key",
    "X-Api-Key",
    "client_secret",
    "Authorization",
]
NAMES += [
    "aws_secret_access_key",
    "private_key",
    "sessionid",
    "csrfmiddlewaretoken",
    "credentials",
    "db_pass",
    "jwt",
    "passphrase",
]

words = st.text(string.ascii_letters + string.digits, min_size=6, max_size=40)
#: A secret that no surrounding text contains by chance.
secrets = st.builds(lambda text: f"Zq9{text}Xw7", words)
names = st.sampled_from(NAMES)
prose = st.lists(
    st.sampled_from(["call", "of", "host", "failed:", "(attempt", "2)", "status=500", "{'a': 1}", "\n", "→"]), max_size=8
).map(" ".join)
FORMS = {
    "keyword": lambda name, secret: f"connect(user='bob', {name}={secret})",
    "keyword, spaced": lambda name, secret: f"{name} = {secret}",
    "keyword, quoted": lambda name, secret: f"{name}='{secret} {secret}'",
    "repr": lambda name, secret: repr({"user": "bob", name: f"{secret} it's", "n": 1}),
    "repr of bytes": lambda name, secret: repr({name.encode(): secret.encode()}),
    "repr of a list": lambda name, secret: repr({name: [secret, {"x": secret}], "n": 1}),
    "repr of pairs": lambda name, secret: repr([("Host", "api"), (name, f"Custom {secret}")]),
    "JSON": lambda name, secret: json.dumps({"user": "bob", name: f'{secret} "quoted" \\', "n": 1}),
    "JSON, indented": lambda name, secret: json.dumps({name: secret}, indent=2),
    "JSON in JSON": lambda name, secret: json.dumps({"body": json.dumps({name: f"{secret} and more"})}),
    "JSON cut off": lambda name, secret: json.dumps({name: f"{secret} and more"})[:-2],
    "form": lambda name, secret: f"data[{name}]={secret}",
    "environment": lambda name, secret: f"export {name.upper()}={secret}",
    "constraint": lambda name, secret: f"DETAIL: Key ({name})=({secret}) already exists.",
    "XML": lambda name, secret: f"<{name} type='x'>{secret}</{name}>",
    "option": lambda name, secret: f"run --{name} {secret} --verbose",
}
ANYWHERE = {
    "URL password": lambda secret: f"postgres://bob:{secret}@db.example:5432/shop",
    "URL user": lambda secret: f"https://{secret}@api.example/v1",
    "URL password with an at": lambda secret: f"amqp://bob:p@{secret}@mq.example//",
    "URL password with a slash": lambda secret: f"redis://:x/{secret}@cache.example/0",
    "URLs in a list": lambda secret: f"sentinel://a:{secret}@h1:1;sentinel://b:{secret}@h2:2",
    "URL query": lambda secret: f"GET https://api.example/v1?page=2&q={secret}&n={quote(secret)}#top",
    "bearer": lambda secret: f"sent Bearer {secret} to the server",
    "header": lambda secret: f"Authorization: Custom realm=x, response={secret} {secret}\nHost: api",
    "cookie header": lambda secret: f"Cookie: a={secret}; b={secret}",
    "OpenAI's message": lambda secret: f"Incorrect API key provided: {secret}. You can find your key at",
    "OpenAI key": lambda secret: f"using sk-proj-{secret} as key",
    "GitHub key": lambda secret: f"using ghp_{secret * 2} as key",
    "JSON web token": lambda secret: f"got eyJhbGciOiJI.{secret}.{secret} back",
    "PEM": lambda secret: f"-----BEGIN RSA PRIVATE KEY-----\n{secret}\n{secret}\n-----END RSA PRIVATE KEY-----",
    "PEM cut off": lambda secret: f"-----BEGIN PRIVATE KEY-----\n{secret}\n{secret}",
    "SQL": lambda secret: f"ALTER ROLE bob PASSWORD '{secret} {secret}'",
}


@given(name=names, secret=secrets, before=prose, after=prose)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_redact__a_named_secret_never_survives(form, name, secret, before, after):
    """Whatever form a field has and whatever stands around it, the value of a telling name is gone."""
    clean = redact(f"{before} {form(name, secret)} {after}", 5000)

    assert secret not in clean
    assert MASK in clean


@given(secret=secrets, before=prose, after=prose)
@pytest.mark.parametrize("form", ANYWHERE.values(), ids=ANYWHERE)
def test_redact__a_secret_that_looks_like_one_never_survives(form, secret, before, after):
    """Credentials in URLs, headers, queries and keys of well-known form are gone without a telling name."""
    clean = redact(f"{before} {form(secret)} {after}", 5000)

    assert secret not in clean
    assert MASK in clean


@given(name=names, secret=secrets, padding=st.integers(0, 400), limit=st.integers(1, 60))
@pytest.mark.parametrize("form", [*FORMS.values(), lambda _, secret: f"postgres://bob:{secret}@db/shop"])
def test_redact__no_cut_uncovers_a_secret(form, name, secret, padding, limit):
    """Wherever the text is cut off, a secret is not left half hidden."""
    clean = redact("x " * padding + form(name, secret), limit)

    assert "Zq9" not in clean
    assert len(clean) <= limit


messages = st.one_of(
    st.text(max_size=400),
    st.text("pas=:'\"\\ [](){},;?&/@token<>…\n", max_size=400),
    st.lists(
        st.sampled_from(
            [
                "token",
                "=",
                ":",
                "'",
                '"',
                "\\",
                "[",
                "]",
                "{",
                "}",
                ",",
                " ",
                "https://u:p@h/?a=b",
                MASK,
                "…",
                "Bearer",
                "<key>",
                "--api-key",
                "\n",
                "None",
            ]
        ),
        max_size=40,
    ).map("".join),
)


@given(text=messages, limit=st.one_of(st.integers(1, 50), st.just(300)))
@example(text="token=[redacted", limit=300)
@example(text="password='x", limit=11)
def test_redact__twice_changes_nothing(text, limit):
    """What is clean stays as it is, also after a cut."""
    once = redact(text, limit)

    assert redact(once, limit) == once
    assert len(once) <= limit


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'name'",
        "Connection to db.example:5432 refused after 3.2 s",
        "https://example.com/@author/post: 404 Not Found",
        "maximum context length is 8192 tokens",
        "max_tokens=4096, total_tokens: 12",
        "author=Bob, keyword=x",
        "token=None, password=''",
        "deadlock detected: process 12 waits for ShareLock on transaction 34",
        "duplicate key value violates unique constraint",
        "[Errno 111] Connection refused",
    ],
)
def test_redact__leaves_ordinary_messages_readable(text):
    """What is no secret is still there to be read."""
    assert redact(text) == text


def test_redact__keeps_what_stands_around_a_secret():
    """Host, path, other fields and the form of JSON survive."""
    assert redact("postgres://bob:pw@db.example:5432/shop refused") == f"postgres://{MASK}@db.example:5432/shop refused"
    assert json.loads(redact(json.dumps({"user": "bob", "password": "pw", "n": 1}))) == {"user": "bob", "password": MASK, "n": 1}


def test_redact__covers_the_names_that_django_hides():
    """Every word of Django's own list hides the value of a setting."""
    for word in SafeExceptionReporterFilter.hidden_settings.pattern.split("|"):
        assert redact(f"MY_{word}_1=Zq9x7") == f"MY_{word}_1={MASK}"


def test_redact__takes_more_expressions_from_the_settings(settings):
    """RESILIENCE["REDACT"] adds expressions, which never touch what is masked already."""
    settings.RESILIENCE = {"REDACT": [r"\bcustomer-\d+", r"\w+@\w+\.example", r"redacted"]}

    assert redact("customer-17 (a@b.example) token=x") == f"{MASK} ({MASK}) token={MASK}"


HOSTILE = ["://", "a.a.", "token=", "token:[", "password='", "\\", "key ", "?a=&", "eyJ", "sk-", "-----BEGIN A-----", "<key>"]
HOSTILE += ["a", "bearer ", " ", "token=\\\\\\'", "@", "@:", "password", "key provided ", "'token', '", "((", "token=,"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_redact__hostile_text_costs_linear_time(piece):
    """Half a megabyte of the worst text takes a second or so, where anything quadratic would take hours; a huge one is cut first."""
    text = "x://" + piece * (500_000 // len(piece)) + "'"

    started = time.perf_counter()
    redact(text, 1_000_000)
    whole_took = time.perf_counter() - started
    started = time.perf_counter()
    redact(text)
    cut_took = time.perf_counter() - started

    assert whole_took < 60
    assert cut_took < 10


def test_redact__takes_any_object():
    """What is no string is turned into one."""
    assert redact({"token": "x"}) == f"{{'token': '{MASK}'}}"
    assert redact(None) == "None"


def test_describe_exception__of_one_that_cannot_be_printed_is_its_class():
    """Telling of an error must not fail where the error's own text does."""

    class UnprintableError(Exception):
        def __str__(self):
            raise AttributeError("forgotten")

    assert describe_exception(UnprintableError()) == "UnprintableError"


def test_describe_exception__is_one_clean_line():
    """Class and message on one line, without secrets; a message that is empty leaves the class alone."""
    assert describe_exception(ValueError("first\n  second token=abc")) == f"ValueError: first second token={MASK}"
    assert describe_exception(TimeoutError()) == "TimeoutError"


SECRET = "hunter2"  # planted


def leaking(*args, **kwargs):
    """Fail as a client does that posts to a URL with a password in it."""
    try:
        raise OSError("password=hunter2")
    except OSError as error:
        raise ConnectionError("POST https://bot:hunter2@hooks.example/T0 failed") from error


def call_with_leaking_hooks():
    """Let every hook of a call and a circuit fail."""
    answers = iter([TimeoutError(), "done"])

    def flaky():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    breaker = CircuitBreaker("leaking", scope="process", failure_on_result=leaking, failure_if=leaking, failure_threshold=9)
    retry(delay=0, on_retry=leaking, retry_on_result=leaking)(functools.partial(breaker.call, flaky))()
    CircuitBreaker("leaking news", scope="process", on_open=leaking).open()
    batch_with_retry([1], str, progress=leaking)


def test_log_exception__no_secret_of_a_failing_hook_reaches_the_log(caplog):
    """A hook that fails is logged with the place it failed in, and without what its message and causes tell."""
    caplog.set_level(logging.DEBUG)

    call_with_leaking_hooks()

    told = [record for record in caplog.records if "in leaking" in record.getMessage()]
    assert len(told) == 6
    assert all(record.exc_info is None for record in told)
    assert SECRET not in caplog.text


def test_log_exception__is_how_every_module_logs_exceptions():
    """No module logs an exception as it is, with the messages of all its causes."""
    modules = Path(resilience.__file__).parent.rglob("*.py")
    wrong = [path.name for path in modules if re.search(r"logger\.exception\(|exc_info=", path.read_text())]

    assert wrong == []
