"""What a client did wrong, or the server cannot do, as OpenAI's clients read it."""

from typing import Any, Self

INVALID_REQUEST = "invalid_request_error"
#: status -> the type of its errors, where that is another
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
#: the statuses that OpenAI's clients send again by themselves
_SENT_AGAIN = (408, 409, 429)


class ApiError(Exception):
    """An answer that is no picture: a status, and `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Describes an answer.

        Args:
            status: of HTTP, 400 or more.
            message: a sentence for a person, without prompts.
            code: a word for programs, such as "invalid_size".
            param: the field that is wrong.
            retry_after: seconds after which the same request may be answered; None where it will not.
            headers: more of them.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after, self._headers = retry_after, dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.__dict__)

    @classmethod
    def invalid(cls, message: str, *, param: str | None = None, code: str = "invalid_value") -> Self:
        """A value that cannot be: 400."""
        return cls(400, message, code=code, param=param)

    @property
    def kind(self) -> str:
        """The type of the error, in OpenAI's words."""
        return _TYPES.get(self.status, INVALID_REQUEST if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The answer's headers: whether and when to ask again."""
        found = dict(self._headers)
        if self.retry_after is not None:
            found |= {"retry-after": str(max(1, round(self.retry_after))), "x-should-retry": "true"}
        elif self.status >= 500 or self.status in _SENT_AGAIN:
            found["x-should-retry"] = "false"
        return found


def _rebuilt(kind: type[ApiError], state: dict[str, Any]) -> ApiError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error
