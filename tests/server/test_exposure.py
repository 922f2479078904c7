"""Who can reach the server: addresses, browsers, TLS, and where keys come from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from serving import PATIENCE_S, ServerProcess

from qwell.server.api_keys import collect_api_keys
from qwell.server.errors import StartError

StartServer = Callable[..., ServerProcess]
ORIGIN = "https://chat.example.org"


def ends(server: ServerProcess) -> str:
    """The last line of a server that does not start."""
    with pytest.raises(AssertionError, match="the server ended"), server:
        pass
    assert server.process.wait(PATIENCE_S) == 1
    assert "Traceback" not in server.log
    return server.log.splitlines()[-1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_wide_address_without_a_key(text_folder: Path, tmp_path: Path, host: str) -> None:
    line = ends(ServerProcess(text_folder, tmp_path / "log", host=host))

    assert line.startswith(f"qwell: error: refusing to listen on {host}")
    assert "--insecure" in line


@pytest.mark.parametrize(
    "options", [{"api_keys": ("k",)}, {"api_auth": ("u", "p")}, {"insecure": True}]
)
def test_a_wide_address_with_a_key_or_on_purpose(
    start_server: StartServer, options: dict[str, object]
) -> None:
    server = start_server(host="0.0.0.0", ready=False, **options)

    assert "listening on http://0.0.0.0:" in server.log
    assert ("anyone who can reach" in server.log) == ("insecure" in options)


def test_localhost_needs_no_key(start_server: StartServer) -> None:
    assert start_server(host="localhost").health() == (200, "ok")


class TestKeys:
    def test_from_everywhere(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text("# for the team\n\n  three  \ntwo\n")

        keys = collect_api_keys(["one", "two"], {"QWELL_API_KEY": "four", "HOME": "/"}, file)

        assert set(keys) == {"one", "two", "three", "four"}
        assert len(keys) == 4

    def test_none(self) -> None:
        assert collect_api_keys([], {}, None) == ()

    @pytest.mark.parametrize("key", ["", " ", "two words", "tab\t", "schl\u00fcssel", "x\n"])
    @pytest.mark.parametrize("source", ["--api-key", "QWELL_API_KEY"])
    def test_that_no_header_can_carry(self, source: str, key: str) -> None:
        given, environment = ([key], {}) if source == "--api-key" else ([], {source: key})

        with pytest.raises(StartError) as caught:
            collect_api_keys(given, environment, None)

        assert str(caught.value).startswith(f"{source}: ")
        assert not key.strip() or key not in str(caught.value)

    @pytest.mark.parametrize("content", ["", "# nothing\n\n", "two words\n", None])
    def test_files_without_a_key(self, tmp_path: Path, content: str | None) -> None:
        file = tmp_path / "keys"
        if content is not None:
            file.write_text(content)

        with pytest.raises(StartError, match="keys"):
            collect_api_keys([], {}, file)


class TestOtherOrigins:
    def preflight(self, server: ServerProcess, origin: str) -> requests.Response:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
        }
        url = f"{server.url}/v1/chat/completions"
        return requests.options(url, headers=headers, timeout=PATIENCE_S)

    def test_are_not_let_in_by_default(self, server: ServerProcess) -> None:
        preflight = self.preflight(server, ORIGIN)
        plain = requests.get(
            f"{server.url}/v1/models", headers={"Origin": ORIGIN}, timeout=PATIENCE_S
        )

        assert preflight.status_code == 405
        for answer in (preflight, plain):
            assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_are_let_in_by_name(self, start_server: StartServer) -> None:
        server = start_server(cors_origins=(ORIGIN,), api_keys=("k",))

        allowed = self.preflight(server, ORIGIN)
        other = self.preflight(server, "https://evil.example.org")

        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in allowed.headers
        assert "access-control-allow-origin" not in other.headers
        headers = {"Origin": ORIGIN, "Authorization": "Bearer wrong"}
        refused = requests.get(f"{server.url}/v1/models", headers=headers, timeout=PATIENCE_S)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[str, str]:
        """A certificate of 127.0.0.1 that vouches for itself, and its key."""
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("makes a certificate with openssl, which is not installed")
        certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
        request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
        command = [openssl, *request.split(), "-subj", "/CN=qwell", "-addext"]
        command += ["subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
        subprocess.run(command, check=True, capture_output=True)
        return certificate, key

    def test_over_tls(self, start_server: StartServer, certificate: tuple[str, str]) -> None:
        server = start_server(ssl_certfile=certificate[0], ssl_keyfile=certificate[1], ready=False)

        def get(url: str) -> int:
            return requests.get(url, verify=certificate[0], timeout=PATIENCE_S).status_code

        assert server.url.startswith("https://")
        server.wait_until(lambda: get(f"{server.url}/health") == 200, "healthy server")
        assert get(f"{server.url}/v1/models") == 200
        with pytest.raises(requests.ConnectionError):
            get(f"{server.url.replace('https', 'http')}/v1/models")

    def test_a_certificate_that_is_none(self, start_server: StartServer, tmp_path: Path) -> None:
        file = tmp_path / "certificate.pem"
        for content in (None, "no certificate"):
            if content is not None:
                file.write_text(content)
            server = start_server(ssl_certfile=str(file), ready=False)

            assert server.process.wait(PATIENCE_S) == 1
            assert "qwell: error: cannot use the certificate" in server.log.splitlines()[-1]
            assert "Traceback" not in server.log
