"""
docs/howto/deploy.md: its program, its commands, its SQL and its shell run against a real server; its manifests are checked
by Kubernetes' own schemas, its units by systemd, its sandbox by what the program really asks of the kernel.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath

import kubernetes_validate
import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import support.pgbouncer
from logsluice import schema
from logsluice.cli import main
from logsluice.devserver import EmbeddedPostgres, free_port
from support.howto import BLOCK, PAGES, TITLE, Page, Service, environment, rows
from support.pgbouncer import PgBouncer
from support.processes import until
from support.proxy import Proxy
from support.servers import SETTINGS, create_database, drop_database
from support.shop import LIMIT, Shop

TEXT = (PAGES / "deploy.md").read_text(encoding="utf-8")
SHOWN = {title[1]: text for _, rest, text in BLOCK.findall(TEXT) if (title := TITLE.search(rest))}
LOGGING = json.loads(SHOWN["logging.json"])["handlers"]["postgres"]
JOURNAL = PurePosixPath(LOGGING["journal"])
COMPOSE = yaml.safe_load(SHOWN["compose.yaml"])
KUBERNETES = list(yaml.safe_load_all(SHOWN["shop.yaml"]))
STATEFUL = yaml.safe_load(Page("journal").files["statefulset.yaml"])
UNITS = [name for name in SHOWN if name.endswith((".service", ".timer"))]
EXPOSURE = 25  # of 100, as `systemd-analyze security` counts: "OK" is up to 50; a unit without any of it has 96
SECONDS = re.compile(r"(\d+)s?")


@pytest.fixture
def page(tmp_path):
    """The page's files, the journal in a folder of the test."""
    page = Page("deploy")
    page.change((str(JOURNAL), str(tmp_path / "var" / "journal")), ('"0.0.0.0"', '"127.0.0.1"'))
    page.lay_out(tmp_path)
    return page


class Installation:
    """What the page's first steps have made: an owner, a writer, the tables; as on a managed server, without superuser."""

    def __init__(self, dsn, folder):
        self.dsn, self.folder = dsn, folder
        where = conninfo_to_dict(dsn)
        self.libpq = {f"PG{key.upper()}": str(where[key]) for key in ("host", "port")}
        self.libpq |= {"PGDATABASE": where["dbname"], "PGSSLMODE": where.get("sslmode", "prefer")}
        self.owner = {**self.libpq, "PGUSER": "logs_owner", "PGPASSWORD": "owner's"}
        self.writer = make_conninfo(dsn, user="shop_writer", password="writer's")

    def sh(self, command, **env):
        done = subprocess.run(
            command, cwd=self.folder, env=environment(**env), capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shop(self, dsn=None, **env):
        port = free_port()
        service = Service(
            f"{sys.executable} shop.py", self.folder, LOGSLUICE_DSN=dsn or self.writer, PORT=str(port), **env
        )
        service.url = f"http://127.0.0.1:{port}"
        return service


def get(service, path="/"):
    try:
        with urllib.request.urlopen(service.url + path, timeout=LIMIT) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def server(cluster):
    with EmbeddedPostgres(template=cluster, settings=SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def template(server, tmp_path_factory):
    """A database in which the page's first steps were done, once: each test has a copy of it."""
    folder = tmp_path_factory.mktemp("template")
    Page("deploy").lay_out(folder)
    admin = conninfo_to_dict(server.dsn())
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE DATABASE logs")
        owner, _, create = SHOWN["managed"].replace("'...'", "'owner''s'").split(";")[:3]
        conn.execute(owner)
        conn.execute(create)
        made = Installation(server.dsn("logs"), folder)
        made.sh(
            ["sh", "roles.sh"], **made.libpq, PGPASSWORD=admin["password"], POSTGRES_USER=admin["user"], POSTGRES_DB="logs",
            WRITER_PASSWORD="writer's",
        )  # fmt: skip
        made.sh(COMPOSE["services"]["migrate"]["command"], **made.owner)
        yield conn, "logs"


@pytest.fixture
def installation(server, template, page, tmp_path):
    conn, name = template
    name = create_database(conn, name)
    yield Installation(server.dsn(name), tmp_path)
    drop_database(conn, name)


# --- what runs ----------------------------------------------------------------------------------------------------------


def test_the_program_stores_as_a_writer_and_stops_in_time(installation, tmp_path):
    with installation.shop() as shop:
        assert until(lambda: get(shop, "/ready") == 200, LIMIT), shop.output
        assert [get(shop) for _ in range(5)] == [200] * 5
        assert shop.stop(signal.SIGTERM) == -signal.SIGTERM, "drained, and then as if nothing stood there"
    assert [row["message"] for row in rows(installation.dsn)] == ["started", *["order paid"] * 5]
    ready = installation.sh(
        [sys.executable, "-m", "logsluice", "doctor", "--config", "logging.json"], LOGSLUICE_DSN=installation.writer
    )
    assert "FAIL" not in ready


def test_the_first_process_of_a_container_ends(installation, tmp_path):
    """The kernel delivers it no signal whose action is the default one: it must not go on with its handlers closed."""
    port = free_port()
    command = f"unshare --pid --fork --mount-proc {sys.executable} shop.py"
    with Service(command, tmp_path, LOGSLUICE_DSN=installation.writer, PORT=str(port)) as service:
        service.url = f"http://127.0.0.1:{port}"
        assert until(lambda: get(service) == 200, LIMIT), service.output
        (first,) = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        assert service.process.wait(LIMIT) == 128 + signal.SIGTERM
    assert [row["message"] for row in rows(installation.dsn)] == ["started", "order paid"]


def test_the_grants_of_the_page_are_those_of_the_program():
    assert SHOWN["grants.sql"].split(";\n")[:-1] == list(schema.grants("logsluice", "shop_writer"))


def test_maintain_as_the_owner(installation, tmp_path):
    """As compose, systemd and Kubernetes start it; also with another one beside it."""
    once = next(one for one in KUBERNETES if one["kind"] == "CronJob")["spec"]["jobTemplate"]["spec"]["template"][
        "spec"
    ]
    out = installation.sh(once["containers"][0]["command"], **installation.owner)
    assert "logs * 30d: 0 rows" in out
    every = COMPOSE["services"]["maintain"]["command"]
    assert shlex.join(every) in Page("deploy").commands
    with Service(shlex.join(every), tmp_path, **installation.owner) as service:
        assert until(lambda: "logs * 30d: 0 rows" in service.output, LIMIT), service.output
        assert service.stop(signal.SIGTERM) == 0


def test_what_an_eviction_loses(installation, tmp_path):
    """PostgreSQL is away, the pod is stopped: with the volume the next one sends it, with the emptyDir gone nobody does."""
    options = (tmp_path / "logging.json").read_text().replace('"shutdown_timeout": 10', '"shutdown_timeout": 0.2')
    (tmp_path / "logging.json").write_text(options)
    stored = []
    for gone in (False, True):
        with Proxy(installation.writer) as proxy:
            proxy.refuse()
            with installation.shop(proxy.dsn) as shop:
                assert until(lambda: get(shop) == 200, LIMIT), shop.output
                shop.stop(signal.SIGTERM)
                assert "2 records are left in the journal" in shop.output
            if gone:
                shutil.rmtree(tmp_path / "var" / "journal")
            proxy.heal()
            with installation.shop(proxy.dsn) as shop:
                assert until(lambda: get(shop) == 200, LIMIT), shop.output
                count = 4 if not gone else 6
                assert until(lambda: len(rows(installation.dsn)) >= count, LIMIT), shop.output
                shop.stop(signal.SIGTERM)
        stored.append(len(rows(installation.dsn)))
    assert stored == [4, 6], "of the second pair the first two are gone"


def test_readiness_when_the_queue_is_full(installation, tmp_path):
    text = (tmp_path / "logging.json").read_text()
    entry = json.loads(text)
    for name in ("journal", "journal_bytes"):
        del entry["handlers"]["postgres"][name]
    entry["handlers"]["postgres"].update(capacity_bytes=1 << 20, max_frame_bytes=64 << 10, shutdown_timeout=0.1)
    (tmp_path / "logging.json").write_text(json.dumps(entry))
    with Proxy(installation.writer) as proxy:
        proxy.refuse()
        with installation.shop(proxy.dsn) as shop:
            assert until(lambda: get(shop, "/ready") == 200, LIMIT), shop.output
            assert until(lambda: get(shop, "/" + "x" * 30_000) and get(shop, "/ready") == 503, LIMIT)
            proxy.heal()
            assert until(lambda: get(shop, "/ready") == 200, LIMIT), "no restart is needed"


def test_commands_of_the_page_parse(capsys):
    """Every `logsluice …` in a command, a manifest, a unit or a sentence is one that the real parser knows."""
    found = re.findall(r"`(logsluice [a-z][^`]*)`", TEXT) + [
        one for one in Page("deploy").commands if "logsluice" in one
    ]
    found += re.findall(r"ExecStart=\S*/(logsluice .*)", TEXT)
    assert len(found) > 8
    for command in found:
        words = shlex.split(command)[1:]
        with pytest.raises(SystemExit) as ended:
            main([*words[: 2 if words[0] == "preset" else 1], "--help"])
        assert ended.value.code == 0
        known = capsys.readouterr().out
        assert [word for word in words[1:] if word.startswith("--") and word not in known] == [], command
    assert main(shlex.split(Page("deploy").command("logsluice preset"))[1:]) == 0
    assert "nocreate" in capsys.readouterr().out


# --- manifests ------------------------------------------------------------------------------------------------------------


def test_compose():
    """
    Each service has what it needs, and a stop gives it time.

    No tool on PyPI that is kept well checks the specification, so the names of keys are compared with those that are meant.
    """
    keys = {
        "image", "build", "environment", "volumes", "healthcheck", "command", "depends_on", "ports", "read_only", "cap_drop",
        "stop_grace_period", "restart",
    }  # fmt: skip
    services = COMPOSE["services"]
    assert set(COMPOSE) == {"services", "volumes"}
    for name, service in services.items():
        assert set(service) <= keys, name
        for other, needs in service.get("depends_on", {}).items():
            assert needs["condition"] in {"service_healthy", "service_completed_successfully"}
            assert ("healthcheck" in services[other]) == (needs["condition"] == "service_healthy")
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert place in COMPOSE["volumes"] or place.removeprefix("./") in SHOWN, volume
    assert int(SECONDS.fullmatch(services["shop"]["stop_grace_period"])[1]) > LOGGING["shutdown_timeout"]
    (mount,) = services["shop"]["volumes"]
    assert JOURNAL.is_relative_to(mount.split(":")[1])
    assert f"-m 0700 {mount.split(':')[1]}" in SHOWN["Dockerfile"]
    copied = re.search(r"COPY (.*) /app/", SHOWN["Dockerfile"])[1].split()
    assert set(copied) <= set(SHOWN)
    assert {
        name for service in services.values() for name in SHOWN if "." in name and name in str(service.get("command"))
    } <= set(copied)


@pytest.mark.parametrize("resource", [*KUBERNETES, STATEFUL], ids=lambda one: one["kind"])
def test_kubernetes(resource):
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(resource, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**resource, "spec": {**resource["spec"], "replcas": 2}}, version, strict=True)


def test_the_pod_has_room_and_time():
    pod = KUBERNETES[0]["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    assert pod["terminationGracePeriodSeconds"] > LOGGING["shutdown_timeout"] + 5 + 10, "as the page adds it up"
    mount = PurePosixPath(container["volumeMounts"][0]["mountPath"])
    assert mount in JOURNAL.parents, "a folder of the mount, not the mount itself"

    def size(text):
        return int(text[:-2]) << {"Mi": 20, "Gi": 30}[text[-2:]]

    limit = size(container["resources"]["limits"]["ephemeral-storage"])
    assert LOGGING["journal_bytes"] < size(volume["emptyDir"]["sizeLimit"]) < limit
    assert KUBERNETES[1]["spec"]["concurrencyPolicy"] == "Forbid"


# --- systemd --------------------------------------------------------------------------------------------------------------


def analyze(*args):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.fail("systemd-analyze is missing: apt-get install systemd", pytrace=False)
    return subprocess.run([program, *args], capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.fixture
def units(tmp_path):
    """The page's units, with programs that are there."""
    for name in UNITS:
        text = (
            SHOWN[name].replace("/opt/shop/bin", str(Path(sys.executable).parent)).replace("/etc/shop", str(tmp_path))
        )
        (tmp_path / name).write_text(text.replace("/opt/shop/", f"{tmp_path}/"))
    return {name: str(tmp_path / name) for name in UNITS}


def test_the_units_are_understood(units, tmp_path):
    done = analyze("verify", "--man=no", *units.values())
    ours = [line for line in done.stderr.splitlines() if any(name in line for name in UNITS)]
    assert (done.returncode, ours) == (0, [])
    wrong = tmp_path / "wrong.service"
    wrong.write_text(Path(units["shop.service"]).read_text().replace("ProtectClock", "ProtectClok"))
    assert "ProtectClok" in analyze("verify", "--man=no", str(wrong)).stderr, "the check can fail"
    calendar = re.search(r"OnCalendar=(.*)", SHOWN["logsluice-maintain.timer"])[1]
    assert analyze("calendar", calendar).returncode == 0


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_the_units_are_hardened(units, name):
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", units[name])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_of_the_program_fits_its_configuration():
    unit = SHOWN["shop.service"]
    assert JOURNAL.is_relative_to("/var/lib/" + re.search(r"StateDirectory=(\w+)", unit)[1])
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > LOGGING["shutdown_timeout"]


def allowed(group):
    """The system calls of a group of systemd's."""
    for line in analyze("syscall-filter", group).stdout.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            yield from allowed(name)
        elif name and not name.startswith("#"):
            yield name


def test_the_program_needs_no_more_than_the_unit_allows(installation, tmp_path):
    """Its system calls are in the filter of the unit, and it writes nowhere but into the journal's folder."""
    assert shutil.which("strace"), "strace is missing: apt-get install strace"
    trace = tmp_path / "trace"
    port = free_port()
    command = f"strace -f -qq -o {trace} {sys.executable} shop.py"
    env = {"LOGSLUICE_DSN": installation.writer, "PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"}
    with Service(command, tmp_path, **env) as service:
        service.url = f"http://127.0.0.1:{port}"
        assert until(lambda: get(service) == 200, LIMIT), service.output
        assert until(lambda: len(rows(installation.dsn)) == 2, LIMIT), service.output
        pid = int(trace.read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        service.process.wait(LIMIT)
    lines = trace.read_text(errors="replace").splitlines()
    calls = {found[1] for line in lines if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"flock", "mmap", "openat"} <= calls
    assert calls - set(allowed("@system-service")) == set()
    written = {
        found[1] for line in lines
        if (found := re.search(r'open(?:at)?\((?:AT_FDCWD, )?"([^"]+)", [^)]*O_(?:WRONLY|RDWR)[^)]*\) = \d', line))
    }  # fmt: skip
    journal = str(tmp_path / "var" / "journal")
    assert [one for one in written if not one.startswith((journal, "/dev/null", "/dev/tty"))] == []
    assert "PROT_WRITE|PROT_EXEC" not in "\n".join(lines), "MemoryDenyWriteExecute"


# --- SQL, poolers, tokens -----------------------------------------------------------------------------------------------------


def test_what_pg_cron_can_do(installation):
    """Its jobs are what is between the dollars; and what PostgreSQL says to a DETACH CONCURRENTLY of a computed name."""
    make, delete = re.findall(r"\$\$(.*?)\$\$", SHOWN["pg_cron"], re.DOTALL)
    with psycopg.connect(installation.dsn, user="logs_owner", password="owner's", autocommit=True) as conn:
        made = [row[0] for row in conn.execute(make).fetchall()]
        assert made
        conn.execute("SELECT logsluice.make_partitions(now() - interval '4 days', now())")
        for days, level in ((3.5, 10), (3.5, 20), (1, 10)):
            conn.execute(
                "INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (now() - %s * interval '1 day', %s, 1, 1)",
                [days, level],
            )
        assert conn.execute(delete).rowcount == 1
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (2,)
        with pytest.raises(psycopg.Error) as refused:
            conn.execute(
                f"DO $$BEGIN EXECUTE 'ALTER TABLE logsluice.logs DETACH PARTITION logsluice.{made[-1]} CONCURRENTLY'; END$$"
            )
        assert refused.value.sqlstate == "25001"
        assert refused.value.diag.message_primary.startswith(SHOWN["refused"].strip())


def test_pgbouncer(installation, tmp_path, monkeypatch, capsys):
    shown = SHOWN["pgbouncer.ini"]
    changes = {
        "logs = host=db.example port=5432 dbname=logs": "* = host={host} port={port} user={user} password={password}",
        "listen_port = 6432": "listen_port = {listen}\nunix_socket_dir =",
        "auth_type = scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt": "auth_type = any",
    }
    for old, new in changes.items():
        assert old in shown
        shown = shown.replace(old, new)
    monkeypatch.setattr(support.pgbouncer, "CONFIG", shown)
    owner = make_conninfo(installation.dsn, user="logs_owner", password="owner's")
    with PgBouncer(owner) as bouncer:
        with Shop(bouncer.dsn, read=installation.dsn, create=False) as shop:
            shop.log(20)
            assert shop.flush()
            shop.check()
        assert main(["maintain", "--once", "--keep", "*=30d", "--dsn", bouncer.dsn]) == 2
        assert capsys.readouterr().err == SHOWN["maintain"]


def test_a_token_for_each_connection(installation, tmp_path):
    text = SHOWN["iam.py"].replace("host=db.example dbname=logs user=shop_writer password={password} sslmode=verify-full",
                                     "{base} password={password}")  # fmt: skip
    assert text != SHOWN["iam.py"]
    where = conninfo_to_dict(installation.writer)
    issued = []

    def issue_token(user):
        issued.append(user)
        return where["password"].replace("'", r"\'")

    names = {"issue_token": issue_token, "base": make_conninfo(installation.writer, password=None)}
    exec(text, names)
    handler = names["handler"]
    try:
        names["logging"].getLogger("shop").warning("with a token")
        assert handler.flush(LIMIT)
        assert issued == ["shop_writer"]
        assert [row["message"] for row in rows(installation.dsn)] == ["with a token"]
    finally:
        names["logging"].getLogger().removeHandler(handler)
        handler.close()
