"""The tree of Octavo's exceptions. Knows nothing of HTTP libraries, tensors or terminals.

Every message is one line for a user, and says what to do next where that is known.

    OctavoError
    ├── StartupError            start-up and the command line: printed as one line, exit code 1
    │   ├── ConfigError             flags that contradict each other or the model
    │   ├── ModelNotFoundError      no such name, path, file or cached model
    │   ├── CheckpointError         a file is truncated, corrupt or of an unknown format
    │   ├── UnsupportedModelError   an architecture, block format or feature we do not have
    │   ├── DownloadError           a pull failed: network, checksum, package
    │   ├── InsufficientMemoryError weights or KV cache do not fit
    │   └── AddressError            a port is taken, a host does not resolve
    ├── RequestError            one request is at fault or refused: becomes an API error body
    │   ├── InvalidRequestError     400, names the field
    │   ├── AuthenticationError     401
    │   ├── ModelNotServedError     404
    │   ├── NotFoundError           404 or 405, a route
    │   ├── RequestTooLargeError    413, a body
    │   ├── NotAllowedError         403, the key may not do that
    │   ├── RateLimitedError        429, a limit or a budget of the caller's is used up
    │   │   └── BudgetExceededError     429, a budget
    │   ├── UpstreamError           502, 503 or 504, no backend gave an answer
    │   ├── DeadlineError           504, the request's own time limit passed without an answer
    │   ├── EngineUnavailableError  503, the engine is dead, stuck, restarting or draining
    │   └── QueueFullError          503, too many requests wait already
    └── EngineError             the engine failed while it computed: becomes a 500
        └── DeviceLostError         nothing can be computed any more: ends the engine process
"""

from __future__ import annotations


class OctavoError(Exception):
    """Root of everything that Octavo raises on purpose."""


class StartupError(OctavoError):
    """The command cannot go on; the command line prints the message and exits with 1."""


class ConfigError(StartupError):
    """A flag or a combination of flags makes no sense."""


class ModelNotFoundError(StartupError):
    """No model under this name or path."""


class CheckpointError(StartupError):
    """A checkpoint's file is missing, truncated or not what it says it is."""


class UnsupportedModelError(StartupError):
    """The checkpoint is sound, but needs something that Octavo does not have."""


class DownloadError(StartupError):
    """A model could not be fetched, or what came does not match its checksum."""


class InsufficientMemoryError(StartupError):
    """Weights, KV cache or activations do not fit into the memory at hand."""


class AddressError(StartupError):
    """The server cannot listen where it was told to."""


class RequestError(OctavoError):
    """A request is refused. Carries what OpenAI's error body needs.

    Attributes:
        message: one line for the caller.
        param: the field at fault as the caller spells it (`messages[0].role`), or None.
        code: a stable word for programs (`context_length_exceeded`), or None.
        status: the HTTP status.
        type: OpenAI's error type.
        retry_after_s: when the same request may be worth another try, seconds from now; None:
            that is not known, or it never is.
        request_id: of the HTTP request, set where the error is answered.
        headers: of the answer, besides those that all errors have.
    """

    status: int = 400
    type: str = "invalid_request_error"
    retry_after_s: int | None = None
    request_id: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.headers: dict[str, str] = {}


class InvalidRequestError(RequestError):
    """A field has the wrong type or value, or cannot be served."""


class AuthenticationError(RequestError):
    """The API key is missing or wrong."""

    status = 401
    type = "authentication_error"


class ModelNotServedError(RequestError):
    """The request names a model that this server does not serve."""

    status = 404
    type = "not_found_error"


class NotFoundError(RequestError):
    """No such route, or not with this method."""

    status = 404
    type = "not_found_error"


class RequestTooLargeError(RequestError):
    """The body is larger than the server accepts."""

    status = 413


class NotAllowedError(RequestError):
    """The key is known, but may not do that."""

    status = 403
    type = "permission_error"


class RateLimitedError(RequestError):
    """A limit of the caller's is used up for now; `headers` are OpenAI's `x-ratelimit-*`."""

    status = 429
    type = "rate_limit_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = "rate_limit_exceeded",
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
        self.headers = headers or {}


class BudgetExceededError(RateLimitedError):
    """The worst case of the request does not fit into what a budget has left."""

    type = "insufficient_quota"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = "budget_exceeded",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)


class UpstreamError(RequestError):
    """No backend gave an answer.

    Attributes:
        may_retry: the failure is the backend's and nothing has reached the client, so that another
            target may be tried.
    """

    status = 502
    type = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str | None = None,
        retry_after_s: int | None = None,
        may_retry: bool = True,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.retry_after_s = retry_after_s
        self.may_retry = may_retry


class DeadlineError(RequestError):
    """The request's own time limit passed, and there is no part of an answer to give."""

    status = 504
    type = "timeout_error"


class EngineUnavailableError(RequestError):
    """The engine cannot take requests now."""

    status = 503
    type = "service_unavailable_error"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class QueueFullError(EngineUnavailableError):
    """As many requests wait as the server lets wait."""


class EngineError(OctavoError):
    """The engine failed while it computed this request."""


class DeviceLostError(EngineError):
    """The device takes no further work in this process."""
