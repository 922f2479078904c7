"""Who may use the server: holders of a key, of a user name and password, either, or everybody."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwell.server.errors import HttpError, error_response


class Authentication:
    """ASGI middleware that guards every path but `open_paths`, known to the router or not.

    Any of `api_keys` is taken as `Authorization: Bearer KEY`, or as the password of HTTP Basic
    under any user name, which is how browsers come in; `api_auth` (user, password) as HTTP Basic.
    With both, either opens the door; with none it stands open. Only refusals of `browsed_paths`
    let a browser ask its user for a key: elsewhere it would ask in place of a page's own script.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[str],
        api_auth: tuple[str, str] | None,
        open_paths: Collection[str],
        browsed_paths: Collection[str] = (),
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._browsed_paths = browsed_paths
        self._keys = [key.encode() for key in api_keys]
        self._user_password = None if api_auth is None else ":".join(api_auth).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in self._open_paths or self._admits(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            refusal = self._refusal(in_browser=scope["path"] in self._browsed_paths)
            await error_response(refusal)(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        if not self._keys and self._user_password is None:
            return True
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = credentials.strip().encode("latin-1")
        if scheme.lower() == "bearer":
            # All of them: stopping at the first match would tell by its time which key it was.
            matches = [hmac.compare_digest(given, key) for key in self._keys]
            return any(matches)
        if scheme.lower() == "basic":
            try:
                decoded = base64.b64decode(given, validate=True)
            except binascii.Error:
                return False
            _, _, password = decoded.partition(b":")
            matches = [hmac.compare_digest(password, key) for key in self._keys]
            if self._user_password is not None:
                matches.append(hmac.compare_digest(decoded, self._user_password))
            return any(matches)
        return False

    def _refusal(self, *, in_browser: bool) -> HttpError:
        challenges = []
        if self._keys:
            challenges.append("Bearer")
        if self._user_password is not None or in_browser:
            challenges.append('Basic realm="qwell", charset="UTF-8"')
        return HttpError(
            401,
            "Missing or wrong credentials: send the header Authorization: "
            + " or ".join(challenge.split()[0] for challenge in challenges),
            code="invalid_api_key",
            headers={"WWW-Authenticate": ", ".join(challenges)},
        )
