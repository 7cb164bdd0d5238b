"""Take secrets out of text before it is stored, logged or shown.

The one place that knows what a secret looks like. Everything that leaves a call as text (messages of
exceptions in error messages, circuit failures, run histories) passes through `redact` first.

Every step takes time proportional to the text: possessive quantifiers and scanning by hand, because the text is
whatever a stranger's server sent.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from resilience import conf

__all__ = ["describe_exception", "log_exception", "redact", "text_of"]

_MASK: Final = "[redacted]"
_MORE: Final = "…"
#: How far a word that is cut in two is followed to its end, in characters, before it is dropped instead.
_LONGEST_WORD: Final = 65_536

#: In a field (`name=`, `"name":`) these make its value a secret, wherever they stand in the name. The first line is
#: what Django hides in settings (`SafeExceptionReporterFilter.hidden_settings`).
_FIELD_WORDS: Final = re.compile(
    r"api|auth(?!or(?!iz))|token|key(?!word)|secret|pass(?!eng|ed|ing)|signature|cookie"
    r"|credential|csrf|jwt|nonce|otp|pin\b|pwd|session|sid\b|sig\b|ssn",
    re.IGNORECASE,
)
#: In prose (`name: `) only these do, so that "KeyError: 'name'" can still be read.
_PROSE_WORDS: Final = re.compile(
    r"token|secret|passw|passphrase|pwd|(?:api|access|private|secret)[-_.]?key|credential|authorization|cookie|csrf|session[-_]?id"
    r"|(?:^|[-_.])(?:auth|jwt|key|otp|pass|session|sig|signature)$",
    re.IGNORECASE,
)
#: Headers whose whole line is a secret.
_HEADERS: Final = re.compile(r"(?:proxy-)?authorization|(?:set-)?cookie", re.IGNORECASE)
_FIELD: Final = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]++)(?P<close>\\*+[\"']|[\])])?+(?P<sep>\s*+(?:=>|:=|==?|:|,)|(?=\s))\s*+(?P<prefix>[bBrRuUfF]{0,2}+(?=\\*+[\"']))?+"
)
_EMPTY: Final = re.compile(rf"(?:None|null|{re.escape(_MASK)}|[\s{_MORE}\"'.,;:)\]}}>])*+\Z")
_QUOTE: Final = re.compile(r"\\*+[\"']")
_WORD: Final = re.compile(rf"(?:[^\s,{_MORE}]|,(?!\s|\Z))*+")
_BRACKET: Final = re.compile(r"[\[\](){}]")
_OPENING: Final = {"[": "]", "{": "}", "(": ")"}

_SIMPLE_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # blocks of PEM
    (re.compile(r"-----BEGIN [A-Z ]++-----.*?(?:-----END [A-Z ]++-----|\Z)", re.DOTALL), _MASK),
    # every value of a URL's query
    (
        re.compile(rf"(?P<name>[?&][^\s=&#?'\"]++=)(?!{re.escape(_MASK)}(?:[\s&#'\"<>{_MORE}]|\Z))[^\s&#'\"<>{_MORE}]++"),
        rf"\g<name>{_MASK}",
    ),
    # Authorization schemes in running text
    (
        re.compile(r"(?P<scheme>\b(?:bearer|basic|digest|negotiate)\s++)[A-Za-z0-9._~+/=:-]++", re.IGNORECASE),
        rf"\g<scheme>{_MASK}",
    ),
    (re.compile(r"(?P<scheme>\b(?:token|apikey)\s++)[A-Za-z0-9._~+/=:-]{16,}+", re.IGNORECASE), rf"\g<scheme>{_MASK}"),
    # what follows "Incorrect API key provided"
    (
        re.compile(
            rf"(?P<said>\b(?:key|password|secret|token)\s++(?:given|provided|sent|supplied|used)\s*+[:=]\s*+)(?!{re.escape(_MASK)})[^\s,;]++",
            re.IGNORECASE,
        ),
        rf"\g<said>{_MASK}",
    ),
    # the passwords of SQL statements
    (re.compile(r"(?P<said>\b(?:password|identified\s+by)\s++)'[^']*+(?:'|\Z)", re.IGNORECASE), rf"\g<said>'{_MASK}'"),
    # a JSON web token
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}+(?:\.[A-Za-z0-9_-]*+){1,4}"), _MASK),
    # keys with a well-known beginning: OpenAI, Anthropic, Stripe, GitHub, GitLab, Slack, Google, AWS
    (
        re.compile(
            r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_*-]{8,}+|\bgh[pousr]_[A-Za-z0-9]{16,}+|\bgithub_pat_\w{16,}+|\bglpat-[\w-]{16,}+"
            r"|\bxox[abposr]-[\w-]{8,}+|\bAIza[\w-]{20,}+|\b(?:AKIA|ASIA)[A-Z0-9]{12,}+"
        ),
        _MASK,
    ),
)
_URL: Final = re.compile(r"://[^\s\"'<>]++")
_ELEMENT: Final = re.compile(r"(?P<tag><(?P<name>[\w:.-]++)(?:\s[^<>]*+)?+>)(?P<value>[^<]++)")


def redact(text: object, limit: int = 300) -> str:
    """Return `text` without what looks like a secret, and at most `limit` characters long.

    Removed are user names and passwords in URLs, all values of URL queries, bearer tokens, JSON web tokens,
    keys with a well-known beginning, private keys, values whose name speaks of a secret (in keyword, JSON, repr,
    header, SQL and XML form), and whatever the expressions in `RESILIENCE["REDACT"]` match. What is already clean is
    returned as it is, so redacting twice changes nothing.

    Args:
        text: What to clean; anything that is not a string is turned into one.
        limit: Most characters to keep; at least 1.

    Example:
        >>> redact("GET https://bob:hunter2@api.example/v1?key=abc failed")
        'GET https://[redacted]@api.example/v1?key=[redacted] failed'
        >>> redact({"user": "bob", "password": "hunter2"})
        "{'user': 'bob', 'password': '[redacted]'}"
    """
    clean = _beginning(text_of(text), limit * 8)
    # What one rule leaves may be what another one looks for, and so may what the cut leaves; it settles at once or twice.
    for _ in range(6):
        before = clean
        clean = _shortened(_cleaned(clean), limit)
        if clean == before:
            break
    return clean


def describe_exception(exception: BaseException, limit: int = 300) -> str:
    """Return the class name and the redacted message of an exception, on one line.

    Args:
        exception: The exception to describe.
        limit: Most characters of the message to keep.

    Example:
        >>> describe_exception(ValueError("token=abc123"))
        'ValueError: token=[redacted]'
    """
    # Nothing that a database or a terminal would choke on: the text is stored and shown.
    message = " ".join(redact(exception, limit).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode().split())
    return f"{type(exception).__name__}: {message}" if message else type(exception).__name__


def text_of(value: object) -> str:
    """Return `str(value)` as it is, or "" for an object whose `__str__` raises: it must not hide the error it belongs to.

    Example:
        >>> text_of(ValueError("no such thing"))
        'no such thing'
    """
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # it is the caller's error that counts
        return ""


def log_exception(
    logger: logging.Logger,
    message: str,
    *args: object,
    error: BaseException,
    level: int = logging.ERROR,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Log an exception of somebody else's code: redacted, and with the places it came through.

    `logger.exception` would print its message, those of its causes and lines of code as they are.

    Args:
        logger: Where to.
        message: What happened, in %-form.
        *args: What goes into the message.
        error: The exception.
        level: Level of the record.
        extra: More fields of the record.
    """
    if logger.isEnabledFor(level):
        text, walked = message + " %s\n%s", traceback.walk_tb(error.__traceback__)
        places = "\n".join(f'  File "{at.f_code.co_filename}", line {line}, in {at.f_code.co_name}' for at, line in walked)
        logger.log(level, text, *args, describe_exception(error), places, extra=extra, stacklevel=2)


def _cleaned(text: str) -> str:
    text = _URL.sub(_without_user, text)
    for pattern, replacement in _SIMPLE_RULES:
        text = pattern.sub(replacement, text)
    if _FIELD_WORDS.search(text):
        text = _ELEMENT.sub(_without_content, text)
        text = _without_fields(text)
    for expression in conf.current().redact:
        # Only what is not masked yet: an expression such as \w+ would mask the masks.
        text = _MASK.join(_compiled(expression).sub(_MASK, piece) for piece in text.split(_MASK))
    return text


def _without_user(match: re.Match[str]) -> str:
    """Mask what stands before the last @ of a URL's authority; also a password with a slash in it."""
    cleaned = []
    for url in match[0].split("://"):
        authority = re.split(r"[/?#]", url, maxsplit=1)[0]
        place = re.split(r"[?#]", url, maxsplit=1)[0] if ":" in authority else authority
        user, at, _ = place.rpartition("@")
        cleaned.append(f"{_MASK}{url[len(user) :]}" if at else url)
    return "://".join(cleaned)


def _without_content(match: re.Match[str]) -> str:
    is_secret = _FIELD_WORDS.search(match["name"]) and not _EMPTY.match(match["value"])
    return f"{match['tag']}{_MASK}" if is_secret else match[0]


def _without_fields(text: str) -> str:
    """Mask the values of all fields with a telling name."""
    pieces, position, kept = [], 0, 0
    while match := _FIELD.search(text, position):
        position = match.end()
        if not _is_secret(match):
            continue
        begin, end = _value(text, position, is_line=_HEADERS.fullmatch(match["name"]) is not None and not match["close"])
        value = text[begin:end]
        position = max(end, position)
        if _EMPTY.match(value) or (match["name"].lower().endswith("tokens") and value.isdecimal()):
            continue  # nothing there, or a count of tokens
        pieces += [text[kept:begin], _MASK]
        kept = end
    return "".join([*pieces, text[kept:]])


def _is_secret(match: re.Match[str]) -> bool:
    name, close, separator = match["name"], match["close"], match["sep"].strip()
    if not separator:  # --password xyz, on a command line
        return name.startswith("--") and _FIELD_WORDS.search(name) is not None
    if separator == ",":  # ("password", "xyz"), in a list of headers
        return close is not None and close[-1] in "\"'" and _FIELD_WORDS.search(name) is not None
    words = _PROSE_WORDS if separator == ":" and close is None else _FIELD_WORDS
    return words.search(name) is not None


def _value(text: str, begin: int, *, is_line: bool) -> tuple[int, int]:
    """Return where the value at `begin` begins and ends, without its quotes."""
    quote = _QUOTE.match(text, begin)
    if quote:
        return quote.end(), _end_of_quoted(text, quote.end(), quote[0])
    if is_line:
        end = text.find("\n", begin)
        return begin, len(text) if end < 0 else end
    if text.startswith(_MASK, begin):
        atom_end = begin + len(_MASK)
    elif text[begin : begin + 1] in _OPENING:
        atom_end = _end_of_bracket(text, begin)
    else:
        atom_end = begin
    rest = _WORD.match(text, atom_end)
    assert rest is not None
    return begin, atom_end + len(rest[0].rstrip(")]}>,;.:'\""))


def _end_of_quoted(text: str, begin: int, quote: str) -> int:
    """Return the index of the quote that ends what `quote` began: as deeply escaped, no deeper."""
    depth, position = len(quote) - 1, begin
    while (position := text.find(quote[-1], position)) >= 0:
        first = position
        while first > begin and text[first - 1] == "\\":
            first -= 1
        escapes = position - first
        if escapes == depth or (depth == 0 and escapes % 2 == 0):
            return position - depth
        position += 1
    return len(text)


def _end_of_bracket(text: str, begin: int) -> int:
    """Return the index after the bracket that closes the one at `begin`."""
    open_brackets = []
    for found in _BRACKET.finditer(text, begin):
        if found[0] in _OPENING:
            open_brackets.append(_OPENING[found[0]])
        elif open_brackets and found[0] == open_brackets[-1]:
            open_brackets.pop()
        if not open_brackets:
            return found.end()
    return len(text)


def _beginning(text: str, length: int) -> str:
    """Cut before the expressions run, so that a huge body costs no time; never within a word, which would hide what it is."""
    if len(text) <= length:
        return text
    space = re.compile(r"\s").search(text, length, length + _LONGEST_WORD)
    if space:
        return text[: space.start()]
    words = text[:length].split()
    return text[: length - len(words[-1] if words else "")] + _MASK


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    text = text[: limit - 1]
    for length in range(len(_MASK) - 1, 0, -1):
        if text.endswith(_MASK[:length]):
            text = text[:-length]
            break
    return text + _MORE


@lru_cache(maxsize=64)
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression)
