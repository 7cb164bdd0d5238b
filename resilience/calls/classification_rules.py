"""What is known about the exceptions of each library, as data: class path to kind and outcome.

`classify` walks a class's bases from the most specific to the most general and takes the first path that stands
here, so that a base class that lies (an AuthenticationError that *is* a ConnectionError) never decides. Nothing is
imported: a library that is not installed cannot have raised.

Source:
    The exception hierarchies and the retry rules of the libraries themselves: requests 2.34, httpx 0.28, httpx2 2.16,
    urllib3 2.8, aiohttp 3.14, openai 3.54, anthropic 2.12, botocore 1.44, grpcio 1.85, redis 8.1, celery 5.7,
    kombu 5.7, amqp 5.4. The split between "never sent" and "may have been executed" is urllib3's between connecting
    and reading.
"""

from __future__ import annotations

from typing import Final

from resilience.calls.kinds import ErrorInfo, ErrorKind

__all__ = ["CONTROL_FLOW", "MESSAGES", "MISTAKES", "RULES"]

#: Worth another try, and nothing was done: the request never reached the other side or was turned away.
SAFE: Final = (True, False)
#: Worth another try, but the other side may have done the work.
UNSURE: Final = (True, True)
#: The same call will fail again.
PERMANENT: Final = (False, False)

TIMEOUT, RATE_LIMIT, QUOTA = ErrorKind.TIMEOUT, ErrorKind.RATE_LIMIT, ErrorKind.QUOTA
CONNECTION, SERVER_ERROR, OVERLOADED = ErrorKind.CONNECTION, ErrorKind.SERVER_ERROR, ErrorKind.OVERLOADED
CONFLICT, AUTH, PERMISSION = ErrorKind.CONFLICT, ErrorKind.AUTH, ErrorKind.PERMISSION
INVALID, NOT_FOUND, TLS = ErrorKind.INVALID_REQUEST, ErrorKind.NOT_FOUND, ErrorKind.TLS
INTEGRITY, UNKNOWN = ErrorKind.INTEGRITY, ErrorKind.UNKNOWN

#: Built-in exceptions that speak of the program and not of the other side: known, and known not to pass.
MISTAKES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    RecursionError,
    StopAsyncIteration,
    StopIteration,
    SyntaxError,
    SystemError,
    TypeError,
    UnicodeError,
    Warning,
)

#: Exceptions that steer a program instead of reporting an error: never caught, counted or retried. (So is everything
#: that is no `Exception`: KeyboardInterrupt, SystemExit, GeneratorExit, asyncio's CancelledError, gevent's Timeout.)
CONTROL_FLOW: Final = frozenset(
    {
        "billiard.exceptions.SoftTimeLimitExceeded",
        "celery.exceptions.TaskPredicate",
        "celery.exceptions.Retry",
        "celery.exceptions.Ignore",
        "celery.exceptions.Reject",
        "concurrent.futures._base.CancelledError",
        "grpc.FutureCancelledError",
    }
)

_TABLE: Final = (
    # module, kind, outcome, class names
    ("builtins", TIMEOUT, UNSURE, "TimeoutError"),
    ("builtins", CONNECTION, SAFE, "ConnectionRefusedError"),
    ("builtins", CONNECTION, UNSURE, "ConnectionResetError ConnectionAbortedError BrokenPipeError ConnectionError"),
    (
        "builtins",
        UNKNOWN,
        PERMANENT,
        " ".join(cls.__name__ for cls in MISTAKES),
    ),
    ("http.client", CONNECTION, UNSURE, "RemoteDisconnected IncompleteRead BadStatusLine"),
    ("http.client", INVALID, PERMANENT, "InvalidURL ImproperConnectionState UnimplementedFileMode"),
    ("ssl", TLS, PERMANENT, "SSLCertVerificationError CertificateError SSLError"),
    ("ssl", CONNECTION, UNSURE, "SSLEOFError SSLZeroReturnError SSLSyscallError"),
    ("ssl", TIMEOUT, UNSURE, "SSLWantReadError SSLWantWriteError"),
    ("json.decoder", INVALID, PERMANENT, "JSONDecodeError"),
    ("asyncio.exceptions", CONNECTION, UNSURE, "IncompleteReadError"),
    # requests
    ("requests.exceptions", TIMEOUT, SAFE, "ConnectTimeout"),
    ("requests.exceptions", TIMEOUT, UNSURE, "ReadTimeout Timeout"),
    ("requests.exceptions", CONNECTION, SAFE, "ProxyError"),
    ("requests.exceptions", CONNECTION, UNSURE, "ChunkedEncodingError"),
    ("requests.exceptions", TLS, PERMANENT, "SSLError"),
    (
        "requests.exceptions",
        INVALID,
        PERMANENT,
        """ContentDecodingError InvalidHeader InvalidJSONError InvalidProxyURL InvalidSchema InvalidURL JSONDecodeError
        MissingSchema StreamConsumedError TooManyRedirects URLRequired UnrewindableBodyError""",
    ),
    # httpx and httpx2 (the same names in two packages, see below)
    # urllib3
    ("urllib3.exceptions", TIMEOUT, SAFE, "ConnectTimeoutError"),
    ("urllib3.exceptions", CONNECTION, SAFE, "NewConnectionError NameResolutionError ProxyError"),
    ("urllib3.exceptions", OVERLOADED, SAFE, "EmptyPoolError FullPoolError"),
    ("urllib3.exceptions", TIMEOUT, UNSURE, "ReadTimeoutError TimeoutError"),
    ("urllib3.exceptions", CONNECTION, UNSURE, "ProtocolError IncompleteRead InvalidChunkLength"),
    ("urllib3.exceptions", TLS, PERMANENT, "SSLError"),
    (
        "urllib3.exceptions",
        INVALID,
        PERMANENT,
        """BodyNotHttplibCompatible ClosedPoolError DecodeError HostChangedError InvalidHeader LocationParseError
        LocationValueError ProxySchemeUnknown ProxySchemeUnsupported ResponseNotChunked URLSchemeUnknown
        UnrewindableBodyError""",
    ),
    # aiohttp
    ("aiohttp.client_exceptions", CONNECTION, SAFE, "ClientConnectorError ClientConnectorDNSError ClientProxyConnectionError"),
    (
        "aiohttp.client_exceptions",
        CONNECTION,
        UNSURE,
        "ClientConnectionError ServerDisconnectedError ClientOSError ClientConnectionResetError ClientPayloadError ServerConnectionError",
    ),
    ("aiohttp.client_exceptions", TIMEOUT, UNSURE, "ServerTimeoutError ConnectionTimeoutError SocketTimeoutError"),
    (
        "aiohttp.client_exceptions",
        TLS,
        PERMANENT,
        "ClientConnectorCertificateError ClientConnectorSSLError ClientSSLError ServerFingerprintMismatch",
    ),
    (
        "aiohttp.client_exceptions",
        INVALID,
        PERMANENT,
        "InvalidURL NonHttpUrlClientError TooManyRedirects ContentTypeError WSMessageTypeError UploadAbortedError",
    ),
    # openai and anthropic: errors with a status go by their status; the others stand here
    ("openai", TIMEOUT, UNSURE, "APITimeoutError"),
    ("openai", CONNECTION, UNSURE, "APIConnectionError WebSocketConnectionClosedError"),
    ("openai", OVERLOADED, SAFE, "WebSocketQueueFullError"),
    ("openai", AUTH, PERMANENT, "OAuthError InvalidWebhookSignatureError"),
    (
        "openai",
        INVALID,
        PERMANENT,
        "APIResponseValidationError LengthFinishReasonError ContentFilterFinishReasonError _AmbiguousModuleClientUsageError",
    ),
    ("anthropic", TIMEOUT, UNSURE, "APITimeoutError"),
    ("anthropic", CONNECTION, UNSURE, "APIConnectionError"),
    ("anthropic", UNKNOWN, SAFE, "RetryableError"),
    ("anthropic", AUTH, PERMANENT, "CredentialsError APIWebhookValidationError"),
    ("anthropic.lib.credentials._workload", AUTH, PERMANENT, "WorkloadIdentityError"),
    ("anthropic", INVALID, PERMANENT, "APIResponseValidationError"),
    ("anthropic", QUOTA, PERMANENT, "EnforcedSpendLimitReachedError ContractSpendLimitReachedError PaymentRequiredError"),
    # botocore
    ("botocore.exceptions", CONNECTION, SAFE, "EndpointConnectionError ProxyConnectionError ConnectionError"),
    ("botocore.exceptions", TIMEOUT, SAFE, "ConnectTimeoutError"),
    ("botocore.exceptions", TIMEOUT, UNSURE, "ReadTimeoutError"),
    (
        "botocore.exceptions",
        CONNECTION,
        UNSURE,
        "ConnectionClosedError ResponseStreamingError HTTPClientError IncompleteReadError ChecksumError FlexibleChecksumError",
    ),
    ("botocore.exceptions", TLS, PERMANENT, "SSLError"),
    ("botocore.exceptions", AUTH, PERMANENT, "NoCredentialsError PartialCredentialsError UnauthorizedSSOTokenError"),
    ("botocore.exceptions", CONNECTION, SAFE, "CredentialRetrievalError MetadataRetrievalError TokenRetrievalError"),
    ("botocore.exceptions", UNKNOWN, PERMANENT, "WaiterError"),
    ("botocore.exceptions", INVALID, PERMANENT, "BotoCoreError"),
    # grpc, where there is no status
    ("grpc", TIMEOUT, UNSURE, "FutureTimeoutError"),
    # redis
    ("redis.exceptions", CONNECTION, SAFE, "ConnectionError"),
    ("redis.exceptions", TIMEOUT, UNSURE, "TimeoutError"),
    ("redis.exceptions", OVERLOADED, SAFE, "BusyLoadingError MaxConnectionsError"),
    (
        "redis.exceptions",
        CONNECTION,
        SAFE,
        "ReadOnlyError TryAgainError ClusterDownError MasterDownError AskError MovedError SlotNotCoveredError",
    ),
    ("redis.exceptions", CONFLICT, SAFE, "WatchError"),
    ("redis.exceptions", SERVER_ERROR, PERMANENT, "OutOfMemoryError"),
    (
        "redis.exceptions",
        AUTH,
        PERMANENT,
        "AuthenticationError AuthorizationError ExternalAuthProviderError AuthenticationWrongNumberOfArgsError",
    ),
    ("redis.exceptions", PERMISSION, PERMANENT, "NoPermissionError"),
    ("redis.exceptions", NOT_FOUND, PERMANENT, "NoScriptError"),
    ("redis.exceptions", CONFLICT, PERMANENT, "LockError LockNotOwnedError"),
    ("redis.exceptions", INVALID, PERMANENT, "ResponseError DataError PubSubError InvalidResponse RedisClusterException"),
    # django
    ("django.db.utils", INTEGRITY, PERMANENT, "IntegrityError"),
    ("django.db.utils", INVALID, PERMANENT, "DataError ProgrammingError NotSupportedError"),
    ("django.db.transaction", INVALID, PERMANENT, "TransactionManagementError"),
    ("django.core.exceptions", NOT_FOUND, PERMANENT, "ObjectDoesNotExist"),
    ("django.core.exceptions", PERMISSION, PERMANENT, "PermissionDenied SuspiciousOperation"),
    (
        "django.core.exceptions",
        INVALID,
        PERMANENT,
        """AppRegistryNotReady BadRequest FieldDoesNotExist FieldError ImproperlyConfigured MultipleObjectsReturned
        SynchronousOnlyOperation ValidationError""",
    ),
    ("django.http.response", NOT_FOUND, PERMANENT, "Http404"),
    ("psycopg_pool", OVERLOADED, SAFE, "PoolTimeout TooManyRequests"),
    # A Conflict, HTTP 409, that asks to run the transaction again.
    ("google.api_core.exceptions", CONFLICT, SAFE, "Aborted"),
    # celery, billiard, kombu, amqp
    ("celery.exceptions", TIMEOUT, SAFE, "TimeoutError"),
    ("celery.exceptions", CONNECTION, SAFE, "BackendError BackendGetMetaError BackendStoreError"),
    (
        "celery.exceptions",
        UNKNOWN,
        PERMANENT,
        "MaxRetriesExceededError TaskRevokedError ChordError",
    ),
    ("celery.exceptions", INVALID, PERMANENT, "NotRegistered QueueNotFound ImproperlyConfigured SecurityError InvalidTaskError"),
    ("billiard.exceptions", SERVER_ERROR, UNSURE, "WorkerLostError Terminated"),
    ("billiard.exceptions", TIMEOUT, UNSURE, "TimeLimitExceeded"),
    ("kombu.exceptions", CONNECTION, SAFE, "OperationalError"),
    ("kombu.exceptions", OVERLOADED, SAFE, "LimitExceeded ConnectionLimitExceeded ChannelLimitExceeded"),
    ("kombu.exceptions", INVALID, PERMANENT, "SerializationError SerializerNotInstalled ContentDisallowed VersionMismatch"),
    ("amqp.exceptions", CONNECTION, UNSURE, "RecoverableConnectionError MessageNacked"),
    ("amqp.exceptions", CONFLICT, SAFE, "RecoverableChannelError"),
    ("amqp.exceptions", OVERLOADED, SAFE, "ResourceError"),
    ("amqp.exceptions", PERMISSION, PERMANENT, "AccessRefused NotAllowed"),
    ("amqp.exceptions", NOT_FOUND, PERMANENT, "NotFound"),
    ("amqp.exceptions", INVALID, PERMANENT, "IrrecoverableConnectionError IrrecoverableChannelError"),
    # this app
    ("resilience.exceptions", TIMEOUT, UNSURE, "OperationTimeoutError"),
    ("resilience.exceptions", OVERLOADED, SAFE, "BulkheadFullError CircuitOpenError"),
    ("resilience.exceptions", CONFLICT, SAFE, "ConcurrentUpdateError RunBusyError"),
    ("resilience.exceptions", INVALID, PERMANENT, "RunConfigChangedError"),
    ("resilience.exceptions", UNKNOWN, PERMANENT, "CheckpointError"),
    ("resilience.exceptions", CONNECTION, (False, True), "CommitOutcomeUnknownError"),
)

_HTTPX: Final = (
    (TIMEOUT, SAFE, "ConnectTimeout PoolTimeout"),
    (TIMEOUT, UNSURE, "TimeoutException ReadTimeout WriteTimeout"),
    (CONNECTION, SAFE, "ConnectError ProxyError"),
    (CONNECTION, UNSURE, "NetworkError ReadError WriteError CloseError RemoteProtocolError"),
    (
        INVALID,
        PERMANENT,
        "UnsupportedProtocol LocalProtocolError InvalidURL TooManyRedirects DecodingError CookieConflict StreamError",
    ),
)


def _by_path() -> dict[str, ErrorInfo]:
    rows = [*_TABLE, *((package, *row) for package in ("httpx", "httpx2") for row in _HTTPX)]
    return {
        f"{module}.{name}": ErrorInfo(kind, transient, maybe_executed)
        for module, kind, (transient, maybe_executed), names in rows
        for name in names.split()
    }


#: Class path ("package.module.Class") to what that class means.
RULES: Final[dict[str, ErrorInfo]] = _by_path()

#: The last resort, for errors without a class, status or code that anybody knows: part of the message, lower case.
MESSAGES: Final = (
    (("invalid api key", "incorrect api key", "invalid_api_key", "unauthorized", "authentication failed"), AUTH, PERMANENT),
    (("insufficient_quota", "exceeded your current quota", "billing hard limit"), QUOTA, PERMANENT),
    (("model not found", "model_not_found", "no such model"), NOT_FOUND, PERMANENT),
    (("permission denied", "forbidden"), PERMISSION, PERMANENT),
    (("certificate verify failed",), TLS, PERMANENT),
    (("rate limit", "ratelimit", "too many requests"), RATE_LIMIT, SAFE),
    (("deadlock", "database is locked", "table is locked", "could not serialize", "lock wait timeout"), CONFLICT, SAFE),
    (("timed out", "deadline exceeded", "timeout expired", "request timeout", "gateway timeout"), TIMEOUT, UNSURE),
    (("connection refused", "name or service not known", "temporary failure in name resolution"), CONNECTION, SAFE),
    (
        ("connection reset", "connection aborted", "connection closed", "closed the connection", "lost connection"),
        CONNECTION,
        UNSURE,
    ),
    (("broken pipe", "server disconnected", "server has gone away"), CONNECTION, UNSURE),
    (("overloaded", "temporarily unavailable", "service unavailable"), OVERLOADED, SAFE),
)
