"""
The errors, cut by what the caller can do.

    LogsluiceError
      ConfigError        fix the settings
      DevServerError     the embedded PostgreSQL could not be started
      grammar.FilterError  write the filter anew; it points at the character
      sinks.SinkError    inside the listener only; its Failure gets a verdict (delivery.py)
"""

from __future__ import annotations


class LogsluiceError(Exception):
    """Anything that logsluice raises. Never raised out of a logging call."""


class ConfigError(LogsluiceError, ValueError):
    """An option is wrong. The message names the option, the value and what to write instead."""


class DevServerError(LogsluiceError):
    """The embedded PostgreSQL could not be found or started. The message says what to install or set."""
