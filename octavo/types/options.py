"""How a request is treated, whatever it samples: order, sharing, deadline. Knows no scheduler."""

from __future__ import annotations

import math

import msgspec

from octavo.types.check import check

MAX_CACHE_SALT_LEN = 1024


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to treat a request, whatever it samples.

    Attributes:
        priority: lower runs earlier; other than 0 only under the policy `priority`.
        cache_salt: cached prefixes are shared only between requests of the same salt.
        timeout_s: seconds until the request ends with `timeout`; None: never.
        tenant: whom the policy `fair` counts the request to.

    Raises:
        InvalidRequestError: a value is out of range; its `param` names the request's field.
    """

    priority: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        check(
            len(self.cache_salt) <= MAX_CACHE_SALT_LEN,
            "cache_salt",
            f"cache_salt must have at most {MAX_CACHE_SALT_LEN} characters",
        )
        check(
            self.timeout_s is None or (math.isfinite(self.timeout_s) and self.timeout_s > 0),
            "timeout",
            f"timeout must be a finite number of seconds > 0, got {self.timeout_s}",
        )
