"""
The other pages of docs/howto, run: Celery, structlog, loguru, a script, a cron job, each by the page's own commands.

Who was logged is known without our help: Celery's console prints a line after the logging call returned, the scripts
remove an order's file after it.
"""

from __future__ import annotations

import collections
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.howto import PAGES, Page, Service, environment, rows
from support.processes import ended, until
from support.situations import judge, stored_ids

LIMIT = 30  # seconds to start, to work, to replace a worker; each takes about one
ROOM = 20  # times what an ending may take: another job on the machine is no failure

# Nothing but a flush or the end sends: what is stored after SIGTERM was stored because of it.
LINGER = {"linger": 60}


def lay_out(name, folder, *changes, given=None, printed=False):
    """Write a page's files, changed, into the folder; the page."""
    page = Page(name)
    if printed:
        page.print_presets()
    page.change(*changes, options=given)
    page.lay_out(folder)
    return page


def test_the_index_names_every_page_and_no_other():
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (PAGES / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(path.name for path in PAGES.glob("*.md") if path.name != "README.md")


# --- Celery ---------------------------------------------------------------------------------------------------------

SEND = """
import sys, shop
shop.app.conf.broker_transport_options = {"data_folder_in": "staging", "data_folder_out": "staging"}
name, tasks, orders = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for task in range(tasks):
    shop.pay.delay([f"{name}-{task}-{order}" for order in range(orders)])
"""


class Celery:
    """The page's worker in a folder, and what its console says was logged by which process."""

    def __init__(self, folder, dsn, *changes, **how):
        self.folder, self.dsn = folder, dsn
        self.page = lay_out("celery", folder, *changes, **how)
        (folder / "staging").mkdir()
        self.run(self.page.command("mkdir"))
        self.service = None

    def run(self, command):
        return subprocess.run(
            shlex.split(command), cwd=self.folder, env=environment(LOGS_DSN=self.dsn), check=True, timeout=LIMIT
        )

    @contextmanager
    def worker(self, *options):
        command = " ".join([self.page.command("celery -A shop worker"), *options])
        with Service(command, self.folder, LOGS_DSN=self.dsn) as self.service:
            yield self.service

    def send(self, name, tasks, orders):
        """Queue tasks. Renamed into the queue, since a worker would read a message that is still being written."""
        self.run(shlex.join([sys.executable, "-c", SEND, name, str(tasks), str(orders)]))
        for file in (self.folder / "staging").iterdir():
            file.rename(self.folder / "queue" / file.name)

    @property
    def paid(self):
        """[(order, process)] as the console has them, which comes after our handler."""
        found = re.findall(r"^(\d+) INFO shop: order (\S+) paid$", self.service.output, re.MULTILINE)
        return [(order, int(pid)) for pid, order in found]

    @property
    def pids(self):
        return {pid for _, pid in self.paid}

    def pids_of(self, name):
        return {pid for order, pid in self.paid if order.startswith(name)}

    def paid_by(self, process):
        return sum(pid == process for _, pid in self.paid)

    def serve(self, name, enough):
        """Send tasks, all of which are done, until this is true of what was paid."""
        for n in range(20):  # the pool decides which child gets a task
            self.send(f"{name}-{n}", 10, 10)
            assert until(lambda n=n: sum(order.startswith(f"{name}-{n}-") for order, _ in self.paid) == 100, LIMIT)
            if enough():
                return
        raise AssertionError(self.service.output)


@pytest.mark.parametrize(("pool", "processes"), [("prefork", 2), ("threads", 1), ("solo", 1)])
def test_celery_stores_all_at_sigterm_amid_its_tasks(dsn, tmp_path, pool, processes):
    """Children of the pool leave by os._exit, without any finalizer; a linger of 60 s shows that their end sends."""
    shop = Celery(tmp_path, dsn, given=LINGER)
    shop.run(shop.page.command("celery -A shop call"))
    shop.send("order", 500, 50)  # two seconds of work as a rule: on a busy machine we see late that it has begun
    with shop.worker("--pool", pool) as service:
        assert until(lambda: len(shop.paid) >= 200 and len(shop.pids) >= processes, LIMIT), service.output
        started = time.monotonic()
        assert service.stop() == 0, service.output
        seconds = time.monotonic() - started
        paid = [order for order, _ in shop.paid]
    assert any((tmp_path / "queue").iterdir()), "all tasks were done before SIGTERM"
    assert len(shop.pids) == processes
    outcome = judge(f"Celery {pool}, {processes} workers, SIGTERM", dsn, paid, seconds=seconds)
    assert (outcome.lost, outcome.twice) == (0, 0)
    # The task's id comes from Celery: all records of a task, and of no other, carry it.
    tasks = collections.defaultdict(set)
    for row in rows(dsn, "logger = 'shop'"):
        tasks[row["correlation_id"]].add(row["attributes"]["id"].rpartition("-")[0])
    assert None not in tasks
    assert all(len(names) == 1 for names in tasks.values())
    assert {"17", "18"} <= stored_ids(dsn).keys()  # the page's own `celery call`
    assert seconds < ROOM * 4


def test_celery_loses_only_the_last_moment_of_a_killed_child(dsn, tmp_path):
    shop = Celery(tmp_path, dsn)
    with shop.worker() as service:
        shop.serve("early", lambda: len(shop.pids) == 2)
        before = dict(shop.paid)
        assert until(lambda: before.keys() == stored_ids(dsn).keys(), LIMIT)
        victim, other = shop.pids
        shop.send("burst", 2, 20_000)  # one for each child, half a second of work
        assert until(lambda: all(pid in shop.pids_of("burst") for pid in (victim, other)), LIMIT), service.output
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        assert ended(victim, LIMIT)
        shop.serve("late", lambda: shop.pids_of("late") - {victim, other})  # replaced
        replaced_after = time.monotonic() - killed_at
        # A stop now would wait ten seconds for the result of the killed task: so all is awaited, and none stopped.
        assert until(lambda: shop.paid_by(other) >= 20_000, LIMIT)
        paid = shop.paid
        others = {order for order, pid in paid if pid != victim}
        assert until(lambda: others <= stored_ids(dsn).keys(), LIMIT)
        told = until(lambda: rows(dsn, f"level = 40 AND message LIKE '%pid:{victim} exited with%SIGKILL%'"), LIMIT)
    burst = {order for order, pid in paid if pid == victim and order not in before}
    outcome = judge(
        "Celery prefork, 2 workers, kill -9 of one", dsn, [order for order, _ in paid], seconds=replaced_after,
        note=f"of the {len(burst)} that the killed one had logged since all was stored",
    )  # fmt: skip
    print(f"killed amid a burst of {len(burst)}: {outcome.lost} lost; replaced after {replaced_after:.1f} s")
    assert outcome.twice == 0
    assert dict(paid).keys() - stored_ids(dsn).keys() <= burst
    assert told, "the main process logs the loss of a child"


def test_celerys_printed_preset_works_in_its_worker(dsn, tmp_path):
    shop = Celery(tmp_path, dsn, given=LINGER, printed=True)
    shop.send("order", 2, 5)
    with shop.worker() as service:
        assert until(lambda: len(shop.paid) == 10, LIMIT), service.output
        assert service.stop() == 0, service.output
    assert stored_ids(dsn) == dict.fromkeys((order for order, _ in shop.paid), 1)
    assert rows(dsn, "logger = 'celery.app.trace'")


def test_celery_without_the_signal_stores_nothing(dsn, tmp_path):
    """The pitfall of the page: the worker takes root's handlers away."""
    shop = Celery(tmp_path, dsn, ("@setup_logging.connect\n", ""))
    file = tmp_path / "shop.py"
    file.write_text(file.read_text(encoding="utf-8") + "\n\nconfigure_logging()\n", encoding="utf-8")
    shop.send("order", 2, 5)
    with shop.worker("--loglevel", "INFO", "--pool", "solo") as service:
        assert until(lambda: service.output.count(" paid") >= 10, LIMIT), service.output
        assert service.stop() == 0
    assert not stored_ids(dsn)


# --- scripts that watch a folder --------------------------------------------------------------------------------------


class Inbox:
    """The folder whose files are orders; a file that is gone was logged."""

    def __init__(self, folder):
        self.folder = folder / "inbox"
        self.orders: set[str] = set()

    def add(self, names):
        for name in names:
            (self.folder / name).touch()
            self.orders.add(name)

    @property
    def waiting(self):
        return set(os.listdir(self.folder))  # noqa: PTH208 - names, not paths: ten thousand of them, often

    @property
    def paid(self):
        return self.orders - self.waiting

    def logged(self, dsn):
        """
        Return the orders that were logged, for certain.

        A signal may come between the logging call and the removal of the file: at most one is stored and still there.
        """
        unsure = self.waiting & stored_ids(dsn).keys()
        assert len(unsure) <= 1
        return self.paid | unsure


def set_up(name, folder, *changes, given=None):
    """Lay a page with an inbox out; (its command, the inbox)."""
    page = lay_out(name, folder, *changes, given=given)
    assert page.command("mkdir") == "mkdir inbox"
    (folder / "inbox").mkdir()
    return page.command("python worker.py"), Inbox(folder)


def structlog_formatted(folder):
    """Replace the two calls in structlog's worker.py by those of its second way."""
    worker = folder / "worker.py"
    text = worker.read_text(encoding="utf-8")
    begin, end = text.index("logging.config.dictConfig("), text.index("log = structlog.get_logger")
    text = text[:begin] + (folder / "formatted.py").read_text(encoding="utf-8") + text[end:]
    assert "render_to_log_kwargs" not in text
    worker.write_text(text, encoding="utf-8")


SCRIPTS = [
    ("script", "script, drain_on_sigterm"),
    ("structlog", "structlog render_to_log_kwargs"),
    ("structlog-formatted", "structlog wrap_for_formatter"),
    ("loguru", "loguru"),
]


@pytest.fixture(params=SCRIPTS, ids=[name for name, _ in SCRIPTS])
def script(request, tmp_path):
    """(its name for the table, its command, the inbox) of each page that watches a folder; only its end sends."""
    name, title = request.param
    command, inbox = set_up(name.partition("-")[0], tmp_path, given=LINGER)
    if name == "structlog-formatted":
        structlog_formatted(tmp_path)
    return title, command, inbox


def stop_amid_work(command, inbox, folder, dsn, how, *, count=10_000):
    """Start the script, stop it when some hundred orders are paid; (exit status, seconds, output)."""
    inbox.add(f"o{n}" for n in range(count))
    with Service(command, folder, LOGS_DSN=dsn) as service:
        assert until(lambda: len(inbox.paid) >= 200, LIMIT), service.output
        started = time.monotonic()
        status = service.stop(how)
        seconds = time.monotonic() - started
    assert inbox.waiting, "all was done before the signal"
    return status, seconds, service.output


def test_scripts_store_all_at_sigterm_amid_their_work(dsn, tmp_path, script):
    title, command, inbox = script
    inbox.add(["bad-3"])  # first in the order of names: it is refused before the others are paid
    status, seconds, output = stop_amid_work(command, inbox, tmp_path, dsn, signal.SIGTERM)
    assert status == -signal.SIGTERM, output
    outcome = judge(f"{title}, SIGTERM", dsn, inbox.logged(dsn), seconds=seconds)
    assert (outcome.lost, outcome.twice) == (0, 0)
    assert seconds < ROOM * 1


def test_rows_of_each_script_are_as_its_page_says(dsn, tmp_path, script):
    title, command, inbox = script
    inbox.add(["17", "bad-3"])
    with Service(command, tmp_path, LOGS_DSN=dsn) as service:
        assert until(lambda: not inbox.waiting, LIMIT), service.output
        started = time.monotonic()
        assert service.stop(signal.SIGINT) == -signal.SIGINT  # Ctrl-C
        seconds = time.monotonic() - started
    outcome = judge(f"{title}, Ctrl-C", dsn, inbox.orders, seconds=seconds)
    assert (outcome.lost, outcome.twice) == (0, 0)
    paid, refused = rows(dsn, "attributes ? 'id'")
    assert (paid["func"], refused["func"]) == ("pay", "<module>")
    assert Path(paid["file"]).name == "worker.py"
    assert (refused["level"], refused["exc_type"], refused["exc_message"]) == (40, "ValueError", "no such customer")
    assert refused["exc_text"].startswith("Traceback")
    assert "\n" not in refused["message"]
    if title.startswith("structlog"):
        assert (paid["message"], refused["message"]) == ("order paid", "order refused")
        assert (paid["attributes"]["amount"], paid["attributes"]["shop"]) == (12.5, "Paris")
    else:
        assert (paid["message"], refused["message"]) == ("order 17 paid", "order bad-3 refused")
    if not title.startswith("script"):
        assert (paid["correlation_id"], refused["correlation_id"]) == ("order-17", "order-bad-3")
    print(title, paid["attributes"], refused["attributes"])


def test_a_script_that_does_not_drain_loses_at_sigterm_what_waits(dsn, tmp_path):
    """What the page warns of; it also shows that the test above is decided by drain_on_sigterm."""
    command, inbox = set_up("script", tmp_path, ("logsluice.drain_on_sigterm()\n", ""), given=LINGER)
    status, seconds, output = stop_amid_work(command, inbox, tmp_path, dsn, signal.SIGTERM)
    assert status == -signal.SIGTERM, output
    outcome = judge("script, SIGTERM's default action, nothing sent before", dsn, inbox.logged(dsn), seconds=seconds)
    assert outcome.lost > 0
    assert outcome.twice == 0


def test_a_killed_script_loses_only_the_last_moment(dsn, tmp_path):
    command, inbox = set_up("script", tmp_path)
    inbox.add(f"early-{n}" for n in range(200))
    with Service(command, tmp_path, LOGS_DSN=dsn) as service:
        assert until(lambda: inbox.orders == stored_ids(dsn).keys() and not inbox.waiting, LIMIT), service.output
        before = set(inbox.orders)
        inbox.add(f"late-{n}" for n in range(2000))
        assert until(lambda: len(inbox.paid) >= len(before) + 100, LIMIT)
        assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    logged = inbox.logged(dsn)
    outcome = judge("script, kill -9", dsn, logged, note=f"of the {len(logged - before)} since all was stored")
    print(f"killed amid a burst of {len(logged - before)}: {outcome.lost} lost")
    assert outcome.twice == 0
    assert before <= stored_ids(dsn).keys()


# --- cron -------------------------------------------------------------------------------------------------------------

TIMEOUT = ('"shutdown_timeout": 20', '"shutdown_timeout": 2')  # seconds


class Cron:
    """
    The page's crontab line, run as cron runs it: by /bin/sh, with four variables and the crontab's own.

    cron itself would need root and a minute for each run; what it adds to this is the clock.
    """

    def __init__(self, folder, dsn, *changes):
        self.folder = folder
        self.inbox = Inbox(folder)
        lay_out("cron", folder, *changes)
        self.inbox.folder.mkdir()
        text = (PAGES / "cron.md").read_text(encoding="utf-8")
        variable, line = re.search(r"^```crontab\n(.*?)\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL).groups()
        name, _, _ = variable.partition("=")
        fields = line.split(None, 5)
        assert fields[:5] == ["*"] * 5
        self.command = fields[5].replace("/srv/shop/.venv/bin/python", shlex.quote(sys.executable))
        self.command = self.command.replace("/srv/shop", shlex.quote(str(folder)))
        self.env = {"HOME": str(folder), "LOGNAME": "shop", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin", name: dsn}

    def run(self, *, then=lambda: None, command=None):
        """Run the job; (exit status, what cron would mail, seconds). `then` is done while it runs."""
        started = time.monotonic()
        job = subprocess.Popen(
            ["/bin/sh", "-c", command or self.command], env=self.env, cwd="/", text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            then()
            mail, _ = job.communicate(timeout=LIMIT)
        finally:
            job.kill()
        return job.returncode, mail, time.monotonic() - started


def test_cron_jobs_store_all_and_mail_nothing(dsn, tmp_path):
    cron = Cron(tmp_path, dsn)
    slowest = 0
    for run in range(3):
        cron.inbox.add(f"für-{run}-{n}" for n in range(100))  # cron sets no locale
        status, mail, seconds = cron.run()
        assert (status, mail) == (0, "")
        slowest = max(slowest, seconds)
    outcome = judge("cron job, three runs", dsn, cron.inbox.orders, seconds=slowest)
    assert (outcome.lost, outcome.twice) == (0, 0)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(DISTINCT stream) FROM logsluice.logs").fetchone() == (3,)
    assert slowest < ROOM * 1


def test_a_cron_job_mails_how_many_records_are_lost(own_server, tmp_path):
    """Its end is bounded, its exit status is its own."""
    cron = Cron(tmp_path, own_server.dsn(), TIMEOUT)
    own_server.kill()
    cron.inbox.add(f"o{n}" for n in range(200))
    status, mail, seconds = cron.run()
    print(f"cron job, server away: {seconds:.1f} s\n{mail}")
    assert status == 0
    assert not cron.inbox.waiting
    assert re.findall(r"(\d+) records were not stored", mail) == ["200"]
    assert "Connection refused" in mail
    assert 2 <= seconds < ROOM * 2


def test_a_cron_job_waits_for_a_server_that_restarts(own_server, tmp_path):
    dsn = own_server.dsn()
    cron = Cron(tmp_path, dsn)
    own_server.kill()
    cron.inbox.add(f"o{n}" for n in range(200))

    def restart():
        assert until(lambda: not cron.inbox.waiting, LIMIT)  # logged while the server is away
        own_server.start()

    status, mail, seconds = cron.run(then=restart)
    assert status == 0, mail
    outcome = judge("cron job, server restarts within shutdown_timeout", dsn, cron.inbox.orders, seconds=seconds)
    assert (outcome.lost, outcome.twice) == (0, 0)
    assert "lost" not in mail


def test_a_strict_cron_job_fails_when_its_log_is_not_stored(own_server, tmp_path):
    dsn = own_server.dsn()
    cron = Cron(tmp_path, dsn, TIMEOUT, ("flush(10)", "flush(1)"))
    command = cron.command.replace("nightly.py", "strict.py")
    assert command != cron.command
    cron.inbox.add(["o1"])
    assert cron.run(command=command)[0] == 0
    assert stored_ids(dsn) == {"o1": 1}
    own_server.kill()
    cron.inbox.add(["o2"])
    status, mail, _seconds = cron.run(command=command)
    assert status == 1
    assert "the log is not stored" in mail


def test_a_cron_job_without_its_variable_says_so(dsn, tmp_path):
    cron = Cron(tmp_path, dsn)
    del cron.env["LOGS_DSN"]
    status, mail, _seconds = cron.run()
    assert status == 1
    assert "the environment variable 'LOGS_DSN', which is not set" in mail
