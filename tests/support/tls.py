"""A server that lets nobody in without TLS, and certificates that it may show, good and bad."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager

from psycopg.conninfo import make_conninfo

from logsluice.devserver import EmbeddedPostgres
from support.servers import SETTINGS

HBA = "local all all scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n"  # local: how its start is seen


def certificate(folder, name, *, days=2):
    """Make a key and its self-signed certificate for localhost: (key, certificate). `days=-1`: expired a day ago."""
    key, request, made = (folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
    extension = folder / "extension"
    extension.write_text("subjectAltName = DNS:localhost\nbasicConstraints = critical, CA:TRUE\n")
    make_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost"  # RSA takes ten times longer
    _openssl("req", *make_key.split(), "-keyout", key, "-out", request)
    _openssl("x509", "-req", "-in", request, "-signkey", key, "-days", str(days), "-extfile", extension, "-out", made)
    return key, made


def _openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


class TlsServer(EmbeddedPostgres):
    """`show(key, certificate)` before `start`, and again at any time: new connections see it."""

    def show(self, key, made):
        """Show this certificate from now on."""
        for source, name in ((key, "server.key"), (made, "server.crt")):
            target = self.folder / name
            target.write_bytes(source.read_bytes())
            target.chmod(0o600)
            self._account.own(target)
        if self.pid is not None:
            os.kill(self.pid, signal.SIGHUP)

    def tls_dsn(self, root, dbname="postgres", sslmode="verify-full"):
        """By name and with this root certificate: what a careful program writes."""
        return make_conninfo(
            self.dsn(dbname), host="localhost", hostaddr="127.0.0.1", sslmode=sslmode, sslrootcert=str(root)
        )

    def local_dsn(self, dbname="postgres"):
        """Through the socket in its folder, where TLS is not asked for."""
        return make_conninfo(self.dsn(dbname), host=str(self.folder / "socket"))


@contextmanager
def tls_server(cluster, key, made):
    """A running server that shows this certificate, and takes no plain connection."""
    server = TlsServer(template=cluster, settings=SETTINGS).prepare()
    try:
        hba = server.folder / "hba.conf"
        hba.write_text(HBA)
        server._settings |= {
            "ssl": "on",
            "hba_file": hba,
            "ssl_key_file": server.folder / "server.key",
            "ssl_cert_file": server.folder / "server.crt",
        }
        server.show(key, made)
        yield server.start()
    finally:
        server.stop()
