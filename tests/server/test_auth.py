"""Who gets in, by which credentials, on which paths."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests
from serving import PATIENCE_S, ServerProcess

from qwell.server.auth import Authentication

KEY = "s3cret-key"
USER, PASSWORD = "user", "pass:wörd"
GUARDED = [
    "/v1/models",
    "/v1/models/x",
    "/version",
    "/v1/completions",
    "/no/such/path",
    "/health/",
    "//",
]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


GOOD = {"key": f"Bearer {KEY}", "basic": basic(USER, PASSWORD)}
BAD = {
    "nothing": None,
    "empty": "",
    "scheme only": "Bearer",
    "no scheme": KEY,
    "wrong key": "Bearer wrong",
    "key and more": f"Bearer {KEY}x",
    "part of the key": f"Bearer {KEY[:-1]}",
    "key in another scheme": f"Basic {KEY}",
    "not base64": "Basic ???",
    "wrong password": basic(USER, "wrong"),
    "wrong user": basic("other", PASSWORD),
    "no colon": "Basic " + base64.b64encode(b"user").decode(),
    "latin-1": "Bearer schl\u00fcssel",
    "password as key": f"Bearer {PASSWORD.replace('ö', 'o')}",
}
OTHER_KEY = "another-key"
MODES = {"key": {"api_keys": (OTHER_KEY, KEY)}, "basic": {"api_auth": (USER, PASSWORD)}}
MODES["both"] = {**MODES["key"], **MODES["basic"]}


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def guarded(
    text_folder: Path, tmp_path_factory: pytest.TempPathFactory, mode: str
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("auth") / "log"
    with ServerProcess(text_folder, log, **MODES[mode]) as running:
        yield running


def get(server: ServerProcess, path: str, authorization: str | None) -> requests.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    return requests.get(f"{server.url}{path}", headers=encoded, timeout=PATIENCE_S)


@pytest.mark.parametrize("credentials", BAD)
@pytest.mark.parametrize("path", GUARDED)
def test_strangers_stay_out(guarded: ServerProcess, mode: str, path: str, credentials: str) -> None:
    answer = get(guarded, path, BAD[credentials])

    assert answer.status_code == 401
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_api_key"
    challenge = answer.headers["www-authenticate"]
    assert ("Bearer" in challenge) == (mode != "basic")
    assert ("Basic " in challenge) == (mode != "key")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("credentials", GOOD)
def test_each_mode_takes_its_own_credentials(
    guarded: ServerProcess, mode: str, credentials: str
) -> None:
    answer = get(guarded, "/v1/models", GOOD[credentials])

    assert answer.status_code == (200 if mode in (credentials, "both") else 401)


def test_each_key_opens(guarded: ServerProcess, mode: str) -> None:
    answer = get(guarded, "/v1/models", f"Bearer {OTHER_KEY}")

    assert answer.status_code == (401 if mode == "basic" else 200)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare_digest(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return given == key

    monkeypatch.setattr("qwell.server.auth.hmac.compare_digest", compare_digest)
    reached = []

    async def app(*_: object) -> None:
        reached.append(True)

    guard = Authentication(app, api_keys=("a", "b"), api_auth=None, open_paths=())
    headers = [(b"authorization", b"Bearer a")]
    asyncio.run(guard({"type": "http", "path": "/x", "headers": headers}, app, app))

    assert compared == [(b"a", b"a"), (b"a", b"b")]
    assert reached


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/metrics"])
def test_a_browser_can_ask_for_the_key(guarded: ServerProcess, mode: str, path: str) -> None:
    refused = get(guarded, path, None)
    assert refused.status_code == 401
    assert 'Basic realm="' in refused.headers["www-authenticate"]

    assert get(guarded, path, basic("anyone", "wrong")).status_code == 401
    assert get(guarded, path, basic("", KEY[:-1])).status_code == 401
    for user in ("", "anyone"):
        answer = get(guarded, path, basic(user, KEY))
        assert answer.status_code == (401 if mode == "basic" else 200)


@pytest.mark.parametrize("sent", [basic("x", "a"), basic("u", "p")])
def test_basic_is_compared_with_all_in_constant_time(
    monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    compared = []

    def compare_digest(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return given == key

    monkeypatch.setattr("qwell.server.auth.hmac.compare_digest", compare_digest)
    reached = []

    async def app(*_: object) -> None:
        reached.append(True)

    guard = Authentication(app, api_keys=("a", "b"), api_auth=("u", "p"), open_paths=())
    headers = [(b"authorization", sent.encode())]
    asyncio.run(guard({"type": "http", "path": "/x", "headers": headers}, app, app))

    assert compared == [b"a", b"b", b"u:p"]
    assert reached


def test_health_is_open(guarded: ServerProcess) -> None:
    assert get(guarded, "/health", None).status_code == 200


def test_openai_client_with_a_key(guarded: ServerProcess, mode: str) -> None:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as client:
        if mode == "basic":
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        else:
            assert client.completions.create(model="m", prompt="say:hi").choices[0].text == "hi"


def test_secrets_are_not_logged(guarded: ServerProcess) -> None:
    assert KEY not in guarded.log
    assert PASSWORD not in guarded.log
