"""
The web pages of docs/howto, run: real servers, the pages' own command lines, requests over real sockets.

Clients pay orders without a pause while the server is stopped, reloaded, or loses a worker. Each page's application
logs the order's id and answers with its process id: an answer means that the logging call had returned.
"""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from logsluice.devserver import free_port
from support.howto import Page, Service, rows
from support.processes import ended, until
from support.situations import judge, stored_ids

CLIENTS = 4  # threads: enough that both workers get connections
STEADY = 200  # answered orders before anything is done to the server
LIMIT = 20  # seconds to start, to serve, to replace a worker; each takes about one
MOMENT = 0.5 + 0.1  # seconds: linger, and a batch in flight
ANSWER = 10  # seconds for one answer
ROOT = Path(__file__).parents[2]

# Nothing but a flush or the end sends: what is stored after SIGTERM was stored because of it.
LINGER = {"linger": 60}


class Shop:
    """A page's application under its server, and clients that write down what was answered and by which process."""

    def __init__(self, folder, dsn, name, start, *options, change=(), given=None, printed=False, **env):
        self.dsn = dsn
        self.answered: dict[str, int] = {}  # order -> process
        self.answered_at: dict[str, float] = {}  # order -> monotonic time
        self.unanswered: list[str] = []  # the connection broke: logged or not, nobody knows
        self._numbers = itertools.count(1)
        self.port = free_port()
        page = Page(name)
        if printed:
            page.print_presets()
        page.change(*change, options=given)
        page.lay_out(folder)
        command = page.command(start)
        assert "8000" in command
        env["HOME"] = str(folder)  # gunicorn puts a socket there
        self.service = Service(
            " ".join([command.replace("8000", str(self.port)), *options]), folder, LOGS_DSN=dsn, **env
        )

    def __enter__(self):
        try:
            assert until(self.pay, LIMIT), self.output
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        self.service.__exit__(*exception)

    @property
    def output(self):
        return self.service.output

    @property
    def workers(self):
        """The processes that have answered so far."""
        return set(self.answered.values())

    def get(self, path):
        """Return (status, body), None when there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def pay(self, more=""):
        """Pay one order; whether it was answered."""
        order = f"order-{next(self._numbers)}"
        answer = self.get(f"/pay?order={order}{more}")
        if answer is None or answer == (200, ""):  # a server that ends between head and body
            self.unanswered.append(order)
            return False
        status, body = answer
        assert status == 200, self.output
        self.answered_at[order] = time.monotonic()
        self.answered[order] = int(body)
        return True

    @contextmanager
    def steady(self):
        """Pay from several threads for the length of the block."""
        stop, errors = threading.Event(), []

        def client():
            try:
                while not stop.is_set():
                    if not self.pay():
                        stop.wait(0.02)  # seconds: the server may be on its way down
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors, errors

    def serve(self, *, processes=2):
        """Wait until some more were answered, and until so many processes have answered."""
        goal = len(self.answered) + STEADY
        served = until(lambda: len(self.answered) >= goal and len(self.workers) >= processes, LIMIT)
        assert served, (len(self.answered), self.workers, self.output)

    def all_stored(self):
        """Wait until every answered order is in the table."""
        return until(lambda: self.answered.keys() <= stored_ids(self.dsn).keys(), LIMIT)

    def stop_under_load(self, how=signal.SIGTERM, *, processes=2):
        """Stop the server while orders are paid; (exit status, seconds)."""
        with self.steady():
            self.serve(processes=processes)
            self.stopped_at = time.monotonic()
            return self.service.stop(how), time.monotonic() - self.stopped_at

    def judge(self, situation, *, before=float("inf"), **more):
        """What became of the orders; one without an answer, or not answered before this time, counts if it is stored."""
        found = stored_ids(self.dsn)
        sure = [order for order, at in self.answered_at.items() if at < before]
        perhaps = self.answered.keys() - sure | set(self.unanswered)
        return judge(situation, self.dsn, [*sure, *(perhaps & found.keys())], **more)

    def nothing_lost(self, situation, **more):
        """Judge, and see that all was stored, and by the processes that answered."""
        outcome = self.judge(situation, **more)
        assert (0, 0) == (outcome.lost, outcome.twice), self.output[-3000:]
        assert self.workers <= {pid for pid, in self.query(
            "SELECT DISTINCT pid FROM logsluice.logs JOIN logsluice.stream USING (stream) WHERE attributes ? 'id'"
        )}  # fmt: skip

    def query(self, text):
        with psycopg.connect(self.dsn) as conn:
            return conn.execute(text).fetchall()


@pytest.fixture
def uwsgi_folder(tmp_path):
    """A folder with the page's `.venv`: of the system's Python, since that is the one in Debian's plugin."""
    try:
        asked = ["uwsgi", "--plugins", "python3", "--python-version"]
        version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.fail(
            "no uWSGI with a plugin for Python 3: apt-get install uwsgi-core uwsgi-plugin-python3", pytrace=False
        )
    minor = ".".join(version.split(".")[:2])
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", ".venv"], cwd=tmp_path, check=True)
    packages = tmp_path / ".venv" / "lib" / f"python{minor}" / "site-packages"
    assert packages.is_dir(), f"uWSGI's plugin runs Python {version}, /usr/bin/python3 is another"
    if minor == "{}.{}".format(*sys.version_info):
        ours = [path for path in sys.path if path.endswith("site-packages")]
        # `addsitedir` and not the bare path: an editable install is a .pth file itself.
        (packages / "ours.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in ours))
    else:  # our packages are compiled for another Python
        pip = [sys.executable, "-m", "pip", "--python", ".venv/bin/python", "install", "--quiet", str(ROOT)]
        subprocess.run(pip, cwd=tmp_path, check=True)
    return tmp_path


# ---- SIGTERM while orders are paid: whatever was answered is stored, once

GUNICORN = "gunicorn --bind"
PRELOAD = "gunicorn --preload"
GTHREAD = "gunicorn --worker-class gthread"


@pytest.mark.parametrize(
    ("situation", "name", "start"),
    [
        ("gunicorn, 2 workers, SIGTERM", "gunicorn", GUNICORN),
        ("gunicorn --preload, 2 workers, SIGTERM", "gunicorn", PRELOAD),
        ("gunicorn gthread, 2 workers, SIGTERM", "gunicorn", GTHREAD),
        ("Flask, gunicorn, 2 workers, SIGTERM", "flask", "gunicorn"),
    ],
)
def test_sigterm_loses_nothing(dsn, tmp_path, situation, name, start):
    with Shop(tmp_path, dsn, name, start, given=LINGER) as shop:
        status, seconds = shop.stop_under_load()
        assert status == 0, shop.output
        shop.nothing_lost(situation, seconds=seconds)


@pytest.mark.parametrize(
    ("situation", "name", "start"),
    [
        ("Flask, flask run, SIGTERM", "flask", "flask"),
        ("Django, runserver --noreload, SIGTERM", "django", "python manage.py runserver"),
    ],
)
def test_drain_on_sigterm_stores_what_was_logged_before_the_signal(dsn, tmp_path, situation, name, start):
    """Servers without a word about SIGTERM; their threads go on serving while the main thread drains."""
    with Shop(tmp_path, dsn, name, start, given=LINGER) as shop:
        status, seconds = shop.stop_under_load(processes=1)
        assert status == -signal.SIGTERM, shop.output
        shop.nothing_lost(situation, before=shop.stopped_at, seconds=seconds)


def test_django_under_gunicorn_stores_its_own_records_too(dsn, tmp_path):
    with Shop(tmp_path, dsn, "django", "gunicorn", given=LINGER) as shop:
        assert shop.get("/nowhere?a=1")[0] == 404
        status, seconds = shop.stop_under_load()
        assert status == 0, shop.output
        shop.nothing_lost("Django, gunicorn, 2 workers, SIGTERM", seconds=seconds)
    (missing,) = rows(dsn, "logger = 'django.request'")
    assert (30, "Not Found: /nowhere") == (missing["level"], missing["message"])
    assert {"status_code": 404, "request": "<WSGIRequest: GET '/nowhere?a=1'>"} == missing["attributes"]


def test_uvicorn_stores_requests_with_their_ids_and_its_access_log(dsn, tmp_path):
    with Shop(tmp_path, dsn, "fastapi", "uvicorn", given=LINGER) as shop:
        status, seconds = shop.stop_under_load()
        assert status == 0, shop.output
        shop.nothing_lost("FastAPI, uvicorn --workers 2, SIGTERM", seconds=seconds)
    orders = {row["attributes"]["id"]: row for row in rows(dsn, "logger = 'shop.orders'")}
    access = rows(dsn, "logger = 'uvicorn.access'")
    assert len(access) >= len(shop.answered)
    assert len({row["correlation_id"] for row in access}) == len(access)  # one request, one id
    for row in access:
        order = orders[row["message"].split("order=")[1].split()[0]]
        assert (order["correlation_id"], "ada") == (row["correlation_id"], row["user_id"])


@pytest.mark.parametrize(
    ("name", "start", "options", "own"),
    [
        ("gunicorn", GUNICORN, "", "gunicorn.access"),
        ("gunicorn", GUNICORN, "--log-config-json gunicorn.json", "gunicorn.access"),
        ("django", "gunicorn", "", "django.request"),
        ("flask", "gunicorn", "", "app"),
        ("fastapi", "uvicorn", "", "uvicorn.access"),
    ],
)
def test_a_printed_preset_works_in_its_server(dsn, tmp_path, name, start, options, own):
    """What `logsluice preset NAME` prints: the program's records and the server's own are stored, once each."""
    change = [("logconfig_dict =", "unused =")] if options else []
    with Shop(tmp_path, dsn, name, start, options, change=change, given=LINGER, printed=True) as shop:
        assert shop.get("/nowhere")[0] in {404, 500}
        for _ in range(20):
            assert shop.pay()
        assert shop.service.stop() == 0, shop.output
        stored = stored_ids(dsn)
        assert shop.answered.keys() <= stored.keys(), shop.output
        assert set(stored.values()) == {1}
    assert rows(dsn, f"logger = '{own}'")


# ---- a worker is killed while orders are paid


def lose_a_worker(shop, situation, *, adopted=False):
    """
    Nothing is stored twice, and lost is only what the killed worker logged a moment ago; nothing when that is `adopted`.

    Exactly so: all is stored before the last moments begin, so what the worker logged in them is all that may be lost.
    """
    with shop.steady():
        shop.serve()
    assert shop.all_stored()
    before, old = set(shop.answered), shop.workers
    assert len(old) == 2
    with shop.steady():
        # A batch of these is on its way, or through: the kill is in the middle of work.
        assert until(lambda: stored_ids(shop.dsn).keys() - before, LIMIT)
        shop.serve()
        victim = list(shop.answered.values())[-1]
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        assert ended(victim, LIMIT)
        assert until(lambda: shop.workers - old, LIMIT), f"nobody took the place of {victim}: {shop.output}"
        seconds = time.monotonic() - killed
        shop.serve(processes=3)
    if adopted:  # by the one that took its place, or by its sibling, while they run
        assert shop.all_stored(), f"nobody adopted the killed worker's records: {shop.output}"
    shop.service.stop()
    last = {order for order, worker in shop.answered.items() if worker == victim} - before
    lost = shop.answered.keys() - stored_ids(shop.dsn).keys()
    age = max((killed - shop.answered_at[order] for order in lost), default=0.0)
    note = f"of {len(last)} of the killed worker's last; the oldest lost one {age:.2f} s before the kill"
    outcome = shop.judge(situation, seconds=seconds, note=note)
    assert outcome.twice == 0
    assert lost <= last, sorted(lost - last)[:5]
    assert age < 10 * MOMENT


@pytest.mark.parametrize(
    ("situation", "name", "start"),
    [
        ("gunicorn, 2 workers, kill -9 of one", "gunicorn", GUNICORN),
        ("gunicorn --preload, 2 workers, kill -9 of one", "gunicorn", PRELOAD),
        ("Flask, gunicorn, 2 workers, kill -9 of one", "flask", "gunicorn"),
        ("Django, gunicorn, 2 workers, kill -9 of one", "django", "gunicorn"),
        ("FastAPI, uvicorn --workers 2, kill -9 of one", "fastapi", "uvicorn"),
    ],
)
def test_a_killed_worker_loses_its_last_moment_and_no_other(dsn, tmp_path, situation, name, start):
    with Shop(tmp_path, dsn, name, start) as shop:
        lose_a_worker(shop, situation)


def test_a_killed_uwsgi_worker_loses_its_last_moment_and_no_other(dsn, uwsgi_folder):
    with Shop(uwsgi_folder, dsn, "uwsgi", "uwsgi") as shop:
        lose_a_worker(shop, "uWSGI, 2 processes, kill -9 of one")


# ---- gunicorn's own ways to end a worker


def test_gunicorn_reload_loses_nothing(dsn, tmp_path):
    with Shop(tmp_path, dsn, "gunicorn", GUNICORN, given=LINGER) as shop:
        with shop.steady():
            shop.serve()
            old = shop.workers
            started = time.monotonic()
            shop.service.process.send_signal(signal.SIGHUP)
            assert until(lambda: len(shop.workers - old) == 2, LIMIT), shop.output
            assert all(ended(pid, LIMIT) for pid in old)
            seconds = time.monotonic() - started
        assert shop.service.stop() == 0
        shop.nothing_lost("gunicorn, 2 workers, HUP", seconds=seconds)


def test_gunicorn_max_requests_loses_nothing(dsn, tmp_path):
    with Shop(tmp_path, dsn, "gunicorn", GUNICORN, "--max-requests 60", given=LINGER) as shop:
        status, seconds = shop.stop_under_load(processes=5)
        assert status == 0
        shop.nothing_lost("gunicorn --max-requests 60, 2 workers, SIGTERM", seconds=seconds)


def test_a_gunicorn_worker_that_is_timed_out_stores_what_it_logged(dsn, tmp_path):
    """SIGABRT is gunicorn's first try, and a normal end as long as Python code runs."""
    with Shop(tmp_path, dsn, "gunicorn", GUNICORN, "--timeout 1", given=LINGER) as shop:
        started = time.monotonic()
        answer = shop.get("/pay?order=stuck&seconds=60")
        seconds = time.monotonic() - started
        assert answer is None or answer[0] == 500, answer
        assert "WORKER TIMEOUT" in shop.output
        assert until(lambda: "stuck" in stored_ids(dsn), LIMIT)
        shop.unanswered.append("stuck")
        assert shop.service.stop() == 0
        shop.nothing_lost("gunicorn --timeout 1, a stuck worker", seconds=seconds)


def test_gunicorns_arbiter_sends_what_it_logged_before_the_fork(dsn, tmp_path):
    """Under --preload the application is loaded by the arbiter alone: one row, in the arbiter's stream."""
    with Shop(tmp_path, dsn, "gunicorn", PRELOAD) as shop:
        with shop.steady():
            shop.serve()
        arbiter = shop.service.process.pid
        assert shop.service.stop() == 0
        loaded = shop.query(
            "SELECT pid FROM logsluice.logs JOIN logsluice.stream USING (stream) WHERE message = 'application loaded'"
        )
        assert [(arbiter,)] == loaded
        assert len(rows(dsn, "logger = 'gunicorn.access'")) == len(shop.answered)


# ---- uWSGI


# uWSGI forks without the interpreter's lock then: a worker whose master had a thread at work stands still for ever, with
# us or without. When its record is stored our threads are asleep, half a second after it for certain.
HOOKLESS = [
    ("py-call-uwsgi-fork-hooks = true\n", ""),
    (
        'log.info("application loaded")\n',
        """log.info("application loaded")
for handler in logging.getLogger().handlers:
    handler.flush()
__import__("threading").Event().wait(0.5)
""",
    ),
]


@pytest.mark.parametrize(
    ("situation", "change"),
    [
        ("uWSGI, 2 processes, SIGTERM", []),
        ("uWSGI without Python's fork hooks, 2 processes, SIGTERM", HOOKLESS),
    ],
)
def test_uwsgi_with_the_application_loaded_before_the_fork(dsn, uwsgi_folder, situation, change):
    with Shop(uwsgi_folder, dsn, "uwsgi", "uwsgi", change=change, given=LINGER) as shop:
        status, seconds = shop.stop_under_load()
        assert status == 0, shop.output
        shop.nothing_lost(situation, seconds=seconds)


def test_uwsgi_reload_loses_nothing(dsn, uwsgi_folder):
    with Shop(uwsgi_folder, dsn, "uwsgi", "uwsgi", given=LINGER) as shop:
        with shop.steady():
            shop.serve()
            old = shop.workers
            started = time.monotonic()
            shop.service.process.send_signal(signal.SIGHUP)
            assert until(lambda: len(shop.workers - old) == 2, LIMIT), shop.output
            seconds = time.monotonic() - started
        assert all(ended(pid, LIMIT) for pid in old)
        assert shop.service.stop() == 0
        shop.nothing_lost("uWSGI, 2 processes, HUP", seconds=seconds)


def test_uwsgi_without_threads_stores_nothing_before_a_worker_ends(dsn, uwsgi_folder):
    with Shop(uwsgi_folder, dsn, "uwsgi", "uwsgi", change=[("enable-threads = true\n", "")]) as shop:
        with shop.steady():
            shop.serve()
        assert not until(lambda: stored_ids(dsn), 2)  # seconds: four times the linger
        assert shop.service.output.count("uWSGI runs no threads: set enable-threads") in {2, 3}  # the master, too
        started = time.monotonic()
        assert shop.service.stop() == 0
        shop.nothing_lost("uWSGI without enable-threads, SIGTERM", seconds=time.monotonic() - started)


def test_uwsgi_with_skip_atexit_loses_what_waits(dsn, uwsgi_folder):
    """As the page says: why nobody should set it."""
    change = [("hook-master-start = unix_signal:15 gracefully_kill_them_all", "die-on-term = true")]
    with Shop(uwsgi_folder, dsn, "uwsgi", "uwsgi", "--skip-atexit", change=change, given=LINGER) as shop:
        status, seconds = shop.stop_under_load()
        assert status == 0
        outcome = shop.judge("uWSGI, die-on-term and skip-atexit, SIGTERM", seconds=seconds)
        assert (outcome.logged, 0) == (outcome.lost, outcome.twice)


# ---- without workers


def test_ctrl_c_at_flask_run_loses_nothing(dsn, tmp_path):
    with Shop(tmp_path, dsn, "flask", "flask", given=LINGER) as shop:
        _status, seconds = shop.stop_under_load(signal.SIGINT, processes=1)
        shop.nothing_lost("Flask, flask run, Ctrl-C", seconds=seconds)
        assert len(rows(dsn, "logger = 'werkzeug' AND message LIKE '%GET /pay%'")) >= len(shop.answered)


def test_one_uvicorn_without_workers_loses_nothing(dsn, tmp_path):
    """It ends by the signal, not by exit: only the flush of the page's lifespan stores what waits."""
    with Shop(tmp_path, dsn, "fastapi", "uvicorn", "--workers 1", given=LINGER) as shop:
        status, seconds = shop.stop_under_load(processes=1)
        assert status == -signal.SIGTERM, shop.output
        shop.nothing_lost("FastAPI, uvicorn, SIGTERM", seconds=seconds)


def test_djangos_server_log_is_stored(dsn, tmp_path):
    with Shop(tmp_path, dsn, "django", "python manage.py runserver") as shop:
        assert shop.all_stored()
        assert until(lambda: rows(dsn, "logger = 'django.server'"), LIMIT)
    (access,) = rows(dsn, "logger = 'django.server'")
    assert access["message"].startswith('"GET /pay?order=')
    assert access["attributes"]["status_code"] == 200
    assert access["attributes"]["request"].startswith("<socket.socket ")


@pytest.mark.parametrize("how", [None, signal.SIGTERM], ids=["end", "SIGTERM"])
def test_a_django_command_stores_all_it_did(dsn, tmp_path, how):
    """A pipe for a file: the command has imported what it has printed, and waits for more."""
    page = Page("django")
    page.change(options=LINGER)
    page.lay_out(tmp_path)
    ids = [f"order-{n}" for n in range(500)]
    pipe = tmp_path / "orders.txt"
    os.mkfifo(pipe)
    command = page.command("python manage.py import_orders")
    with Service(command, tmp_path, LOGS_DSN=dsn, PYTHONUNBUFFERED="1") as service:
        with pipe.open("w") as orders:
            orders.write("\n".join([*ids, ""]))
            orders.flush()
            assert until(lambda: f"{ids[-1]}\n" in service.output.replace("imported", ""), LIMIT), service.output
            started = time.monotonic()
            if how is not None:
                assert -how == service.stop(how), service.output
        assert service.process.wait(LIMIT) == (0 if how is None else -how)
        seconds = time.monotonic() - started
    name = "end" if how is None else "SIGTERM"
    outcome = judge(f"Django, a command, {name}", dsn, ids, seconds=seconds)
    assert (0, 0) == (outcome.lost, outcome.twice)
