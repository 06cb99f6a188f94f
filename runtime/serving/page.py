"""The page: a form over the API, for a person with a browser. Its files are served as they are."""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).with_name("web")
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
#: Nothing is loaded from elsewhere, no script or style stands in the page, and no text becomes markup.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "cache-control": "no-cache",  # kept, and asked for again each time
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
}


def routes() -> list[Route]:
    """The page at `/`, and beside it what it loads."""
    return [_route(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES]


def _route(path: Path) -> Route:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"content-type": f"{_TYPES[path.suffix]}; charset=utf-8", "etag": etag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=_HEADERS | {"etag": etag})
        return Response(content, headers=headers)

    address = "/" if path.name == "index.html" else f"/{path.name}"
    return Route(address, answer, name=f"page {path.name}", include_in_schema=False)
