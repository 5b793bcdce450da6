"""Presets: data that configures, and what the environment changes in it."""

import json
import logging.config

import pytest

from logsluice import ConfigError, presets
from logsluice.cli import main


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("LOG_LEVEL", *presets.PRODUCTION):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGS_DSN", "host=127.0.0.1 port=1")


@pytest.fixture
def logging_as_it_was():
    """dictConfig replaces what the session's root logger had, and gives some servers' loggers handlers of their own."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    named = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    for one in (logging.root, *named):
        for handler in one.handlers[:]:
            if handler not in handlers:
                one.removeHandler(handler)
                handler.close()
        one.disabled, one.propagate = False, True
    for one in named:
        one.setLevel(logging.NOTSET)
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("name", presets.PRESETS)
def test_each_is_data_that_configures_and_a_dict_of_its_own(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = presets.PRESETS[name]("shop")
    assert json.loads(json.dumps(made)) == made
    logging.config.dictConfig(made)
    made["handlers"].clear()
    assert presets.PRESETS[name]("shop")["handlers"]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_is_printed_is_what_the_function_returns(name, capsys):
    assert main(["preset", name, "--service", "shop", "--dsn-env", "OTHER"]) == 0
    assert json.loads(capsys.readouterr().out) == presets.PRESETS[name]("shop", dsn_env="OTHER")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_options_of_the_handler_are_over_the_presets_own(name):
    made = presets.PRESETS[name]("shop", linger=3, journal="here")["handlers"]["postgres"]
    assert (made["linger"], made["journal"], made["service"]) == (3, "here", "shop")


def test_a_dsn_is_taken_in_the_place_of_the_environments():
    handler = presets.three_level("shop", "host=db")["handlers"]["postgres"]
    assert handler["dsn"] == "host=db"
    assert "dsn_env" not in handler


@pytest.mark.parametrize(("env", "console"), [({}, True), ({"APP_ENV": "production"}, False),
                                              ({"LOGSLUICE_ENV": "Production"}, False),
                                              ({"LOGSLUICE_ENV": "development", "APP_ENV": "production"}, True)])  # fmt: skip
def test_there_is_no_console_in_production(env, console, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    made = presets.three_level("shop")
    assert ("console" in made["handlers"]) is console
    assert ("console" in made["root"]["handlers"]) is console
    assert {"error", "combined", "postgres"} <= made["handlers"].keys()


def test_the_level_is_that_of_the_environment(monkeypatch):
    assert presets.three_level("shop")["root"]["level"] == "INFO"
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert presets.three_level("shop")["root"]["level"] == "DEBUG"
    monkeypatch.setenv("LOG_LEVEL", "verbose")
    with pytest.raises(ConfigError, match="LOG_LEVEL='verbose' is no level: write DEBUG"):
        presets.three_level("shop")


@pytest.mark.usefixtures("logging_as_it_was")
def test_three_levels_in_their_files_with_service_and_version(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    made = presets.three_level("shop", version="1.2")
    made["root"]["handlers"].remove("postgres")
    del made["handlers"]["postgres"]
    logging.config.dictConfig(made)
    log = logging.getLogger("shop.orders")
    log.info("order %s paid", 17)
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("refund failed")
    for handler in logging.root.handlers:
        handler.flush()
    lines = {
        name: [json.loads(line) for line in (tmp_path / "logs" / f"{name}.log").read_text().splitlines()]
        for name in ("combined", "error")
    }
    assert [line["message"] for line in lines["combined"]] == ["order 17 paid", "refund failed"]
    assert [line["message"] for line in lines["error"]] == ["refund failed"]
    assert "ZeroDivisionError: division by zero" in lines["error"][0]["exc_text"]
    assert all((line["service"], line["version"]) == ("shop", "1.2") for line in lines["combined"])
    assert "order 17 paid" in capfd.readouterr().err
