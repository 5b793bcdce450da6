"""Children that inherit nothing: `multiprocessing` with spawn or forkserver (the default of Python 3.14 on Linux)."""

from __future__ import annotations

import logging.config
import os
from collections.abc import Mapping
from typing import Any

from logsluice.configfile import load
from logsluice.errors import ConfigError


def child_init(config: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """
    Configure logging in a child process that inherited no handlers.

        ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=logsluice.child_init, initargs=(CONFIG,))

    `config` is what the parent gave to `logging.config.dictConfig`, or where it stands: a JSON or YAML file, or
    "module:NAME". Pool takes the same two arguments; the target of a Process calls it first. A child of fork inherits
    its handlers and needs none of this; there it does no harm. Blocks for as long as reading the file takes. Raises
    ConfigError for what cannot be read, and what dictConfig raises for what it refuses: a pool's initializer that
    raises ends the child, so that a wrong configuration is not overlooked.
    """
    if isinstance(config, (str, os.PathLike)):
        config = load(os.fspath(config))[0]
    elif not isinstance(config, Mapping):
        raise ConfigError(
            f"child_init: config is {type(config).__name__}; give the dictionary that dictConfig gets, or a file's path"
        )
    logging.config.dictConfig(dict(config))
