"""Who may see the page: only who has its address, and only from this computer. The page fetches nothing itself."""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import parse_qs


Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""What browsers may load for the page: nothing from other hosts."""

_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Gate:
    """Lets only those in who opened the page by its secret address, and tells their browsers to stay on this host.

    Other users of the computer and other web pages do not know the secret. The first request brings it in the address,
    and gets a cookie for it. Browsers send that to all ports of this host, but to no other host.

    Args:
        app: an ASGI application.
        secret: part of the address.
        port: of the server; part of the cookie's name, so that two pages do not disturb each other.
    """

    def __init__(self, app: App, secret: str, port: int) -> None:
        self.app, self.secret, self.cookie = app, secret, f"privgen-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI wants it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # the page needs none
            await send({"type": "websocket.close", "code": 1008})
            return
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("secret", [""])[0]
        if scope["path"] == "/" and self._is_secret(given):
            cookie = f"{self.cookie}={self.secret}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(send, 303, b"", (b"location", b"/"), (b"set-cookie", cookie.encode()))
            return
        if not self._is_secret(self._cookie_in(scope)):
            await _answer(send, 403, b"Open the whole address that `privgen app` printed; it holds a secret.\n")
            return
        if "http:" in scope["path"] or "https:" in scope["path"]:
            await _answer(send, 403, b"This page fetches nothing from other hosts.\n")
            return

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _cookie_in(self, scope: Scope) -> str:
        lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
        try:
            found = SimpleCookie("; ".join(lines)).get(self.cookie)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def _is_secret(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.secret.encode())


async def _answer(send: Send, status: int, text: bytes, *headers: tuple[bytes, bytes]) -> None:
    start = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *headers, *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": text})
