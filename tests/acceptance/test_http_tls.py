"""
HTTPS through a real nginx with an authority of its own: what is verified, what is refused, what is said.

nginx is Debian's; where it is not there a test fails and says so.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from logsluice.devserver import free_port
from support.endpoint import LIMIT, Answer, Sender, Stub
from support.processes import until
from support.tls import certificate

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size {limit};
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/shown.crt;
        ssl_certificate_key {folder}/shown.key;
        location / {{ proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; }}
        location /elsewhere {{ return 301 https://other.example.com/canary; }}
    }}
}}
"""


class Nginx:
    """nginx before a stub, showing one certificate."""

    def __init__(self, folder, stub, key, made, limit="1m"):
        program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")  # an ordinary user's PATH lacks it
        if program is None:
            pytest.fail("nginx is not there: apt-get install -y nginx-light", pytrace=False)
        self.folder, self.port = folder, free_port()
        shutil.copy(key, folder / "shown.key")
        shutil.copy(made, folder / "shown.crt")
        config = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(
            CONFIG.format(folder=folder, port=self.port, behind=stub.port, limit=limit, user=user), encoding="utf-8"
        )
        command = [program, "-c", str(config), "-e", str(folder / "error.log")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert until(lambda: (folder / "nginx.pid").exists() and self._listens(), LIMIT), self.log

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self):
        path = self.folder / "error.log"
        return path.read_text() if path.exists() else ""

    def url(self, host="localhost", path="/in", userinfo=""):
        return f"https://{userinfo}{host}:{self.port}{path}"

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(LIMIT)


@pytest.fixture
def stub():
    with Stub() as stub:
        yield stub


@pytest.fixture
def front(tmp_path, stub):
    """Make an nginx that shows a good certificate, or one that is expired; (nginx, its authority's file)."""
    made = []

    def front(*, days=2, **options):
        folder = tmp_path / f"nginx{len(made)}"
        folder.mkdir()
        key, shown = certificate(tmp_path, f"cert{len(made)}", days=days)
        made.append(Nginx(folder, stub, key, shown, **options))
        return made[-1], str(shown)

    yield front
    for one in made:
        one.close()


def test_an_authority_of_ones_own(stub, front):
    nginx, ca = front()
    with Sender(url=nginx.url(), ca_file=ca, token="t0ken") as sender:
        sender.log(500)
        assert sender.flush()
        assert sender.law().stored == 500
    assert stub.stored() == sender.ids
    assert stub.requests[0].headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("system", "self-signed certificate|unable to get local issuer"),
        ("wrong authority", "self-signed certificate|unable to get local issuer|signature failure"),
        ("expired", "expired"),
        ("wrong host", "(?i)ip address mismatch|doesn't match|not valid for"),
    ],
)
def test_a_certificate_that_proves_nothing_is_refused(stub, front, tmp_path, case, says, capfd):
    nginx, ca = front(days=-1 if case == "expired" else 2)
    options = {"ca_file": ca}
    url = nginx.url(host="127.0.0.1" if case == "wrong host" else "localhost")  # it is localhost's
    if case == "system":
        options = {}
    if case == "wrong authority":
        options = {"ca_file": str(certificate(tmp_path, "other")[1])}
    with Sender(url=url, token="canary", shutdown_timeout=0.1, **options) as sender:
        sender.log(5)
        failure = sender.await_failure(2, verdict="blocked")[0]
        assert re.search(says, failure["error"]), failure
        assert "its certificate is refused" in failure["error"]
        assert sender.law().waiting == 5
    assert not stub.requests  # the token went to nobody
    assert "ca_file= names your own authority" in capfd.readouterr().err


def test_verify_false_goes_through_and_says_so_once(stub, front, capfd, recwarn):
    nginx, _ = front(days=-1)
    with Sender(url=nginx.url(host="127.0.0.1"), verify=False, idle_close=0.1) as sender:
        for _ in range(3):
            sender.log(5)
            assert sender.flush()
            assert until(lambda: not sender.handler._pairs[0][1].routes[0].sink.connected, LIMIT)
        assert sender.law().stored == 15
    assert capfd.readouterr().err.count("verify=False: whoever answers in the place of 127.0.0.1 is believed") == 1
    assert not [one for one in recwarn if "InsecureRequest" in str(one.category)]


def test_an_authority_that_is_renewed_is_read_anew(stub, front, tmp_path):
    nginx, ca = front()
    mine = tmp_path / "ca.pem"
    shutil.copy(certificate(tmp_path, "other")[1], mine)
    with Sender(url=nginx.url(), ca_file=str(mine)) as sender:
        sender.log(5)
        sender.await_failure(verdict="blocked")
        shutil.copy(ca, mine)
        assert sender.flush()
        assert sender.law().stored == 5


def test_nginx_takes_no_large_body_and_it_is_made_smaller(stub, front):
    nginx, ca = front(limit="2k")
    with Sender(url=nginx.url(), ca_file=ca, gzip=False) as sender:
        sender.log(100, pad="x" * 100)
        sender.log(1, pad="y" * 5000)
        sender.log(100, pad="x" * 100)
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.abandoned_by) == (200, {"rejected": 1})
    assert sorted(stub.stored()) == [one for one in sender.ids if one != 100]
    assert 413 in {f["status"] for f in sender.failed}


def test_nginx_without_what_is_behind_it_is_an_outage(stub, front):
    nginx, ca = front()
    with Sender(url=nginx.url(), ca_file=ca) as sender:
        port = stub.port
        stub.close()
        sender.log(50)
        assert sender.await_failure(verdict="retry", status=502)
        assert sender.law().waiting == 50
        assert port


def test_nginx_restarts_under_load(stub, front):
    nginx, ca = front()
    with Sender(url=nginx.url(), ca_file=ca) as sender:
        sender.log(100)
        assert sender.flush()
        nginx.process.send_signal(signal.SIGHUP)  # new workers; the old ones close what is idle
        for _ in range(50):
            sender.log(20)
        assert sender.flush()
        assert sender.law().stored == 1100
    assert set(stub.stored()) == set(sender.ids)


def test_nginx_redirects_and_nobody_follows(front):
    nginx, ca = front()
    with Sender(url=nginx.url(path="/elsewhere"), ca_file=ca, shutdown_timeout=0.1) as sender:
        sender.log(5)
        failure = sender.await_failure(verdict="blocked", status=301)[0]
    assert "leads to https://other.example.com;" in failure["error"]
    assert "canary" not in failure["error"]


def test_through_a_proxy_it_is_a_tunnel(stub, front):
    nginx, ca = front()
    with (
        Stub() as proxy,
        Sender(url=nginx.url(), ca_file=ca, proxy=proxy.url("", userinfo="me:secret@"), token="t0ken") as sender,
    ):
        sender.log(50)
        assert sender.flush()
        assert sender.law().stored == 50
        path, headers = proxy.tunnels[0]
        assert path == f"localhost:{nginx.port}"
        assert headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
        assert "authorization" not in headers  # the token is the endpoint's
    assert stub.stored() == sender.ids
    assert "proxy-authorization" not in stub.requests[0].headers


@pytest.mark.parametrize(("status", "verdict"), [(407, "blocked"), (403, "blocked"), (502, "retry")])
def test_a_proxy_that_refuses(front, status, verdict):
    nginx, ca = front()
    with Stub() as proxy:
        proxy.refuses_tunnels = status
        with Sender(
            url=nginx.url(), ca_file=ca, proxy=proxy.url("", userinfo="me:canary@"), shutdown_timeout=0.1
        ) as sender:
            sender.log(5)
            failure = sender.await_failure(verdict=verdict)[0]
    assert f"the proxy answered {status}" in failure["error"]
    assert "canary" not in failure["error"]


# --- secrets --------------------------------------------------------------------------------------------------------------

SECRETS = ("canary-pass", "canary-token", "canary-key", "canary-header", "canary-proxy", "bWU6Y2FuYXJ5")


@pytest.mark.parametrize("fault", ["none", "401", "400", "302", "503", "drop", "tls", "away", "headers"])
@pytest.mark.parametrize("auth", ["token", "userinfo"])
def test_no_secret_is_where_people_look(stub, front, tmp_path, fault, auth, capfd, monkeypatch, caplog):
    """stderr, stats, repr, thread names, the journal, dead letters, what urllib3 logs into the program's handlers."""
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")
    caplog.set_level(logging.DEBUG)
    nginx, ca = front()
    secret = SECRETS[0] if auth == "userinfo" else SECRETS[1]
    answer = {
        "401": Answer(401, f"no: Bearer {secret}"), "400": Answer(400, f"no: {secret} canary-key canary-header"),
        "302": Answer(302, headers={"Location": f"https://me:{secret}@host/?k=canary-key"}), "503": Answer(503),
        # urllib3 logs the url of an answer whose headers it cannot read.
        "drop": Answer(drop=True), "headers": Answer(503, headers={"X": "a\r\nno header at all"}),
    }.get(fault, Answer())  # fmt: skip
    stub.decide = lambda request: answer
    path = tmp_path / "dead.jsonl"
    options = {
        "url": nginx.url(path="/in?api_key=canary-key", userinfo="me:canary-pass@" if auth == "userinfo" else ""),
        "headers": {"X-Key": "canary-header"}, "ca_file": ca, "dead_letters": str(path),
        "journal": str(tmp_path / "journal"), "retry_limit": 2, "shutdown_timeout": 0.2,
    }  # fmt: skip
    if auth == "token":
        options["token"] = "canary-token"
    if fault == "tls":
        options["ca_file"] = str(certificate(tmp_path, "other")[1])
    if fault == "away":
        nginx.close()
    with Sender(**options) as sender:
        sender.log(30)
        assert sender.flush()
        stats = sender.law()
        assert stats.stored == (30 if fault == "none" else 0)
        names = [thread.name for thread in threading.enumerate()]
        seen = [repr(stats), repr(sender.handler), repr(sender.handler._settings), str(names)]
        link = sender.handler._pairs[0][1].routes[0].sink.link
        seen += [repr(link.address), repr(link.credentials), repr(sender.handler._pairs[0][1].routes[0].target)]
        journal = [one.read_bytes() for one in (tmp_path / "journal").rglob("*") if one.is_file()]
    seen += list(capfd.readouterr())
    seen += [record.getMessage() for record in caplog.records]
    seen += [one.decode(errors="replace") for one in journal]
    if path.exists():
        seen.append(path.read_text())
        assert path.stat().st_mode & 0o777 == 0o600
    if stub.requests:  # it did go where it should
        assert {"token": "Bearer canary-token", "userinfo": "Basic bWU6Y2FuYXJ5LXBhc3M="}[auth] in str(
            stub.requests[0].headers
        )
    for text in seen:
        for one in SECRETS:
            assert one not in text, (one, text)
    assert Path(ca).exists()
