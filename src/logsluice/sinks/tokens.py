"""The token of an `HttpHandler`: where it comes from, and when it is asked for again. Listener thread only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from logsluice.delivery import Failure, Verdict
from logsluice.httpconfig import header_value
from logsluice.sinks import SinkError

if TYPE_CHECKING:
    from logsluice.httpconfig import Address, HttpSettings

MOST_TOKEN = 64 * 1024  # bytes of a token's file; a longer one is another file


@dataclass
class Credentials:
    """What names us to the endpoint. Nothing here is ever shown."""

    settings: HttpSettings
    address: Address
    _token: str | None = field(default=None, repr=False)
    _renewed: bool = False  # it was read anew, and nothing was taken since

    def headers(self) -> dict[str, str]:
        """Return the header that names us, if there is one. Raises SinkError while there is no token to be had."""
        settings = self.settings
        found = {} if self.address.basic is None else {"Authorization": f"Basic {self.address.basic}"}
        if self._token is None:
            self._token = self._read()
        if self._token is not None:
            scheme = settings.token_scheme
            if scheme is None:
                scheme = "Bearer" if settings.token_header.lower() == "authorization" else ""
            found[settings.token_header] = f"{scheme} {self._token}" if scheme else self._token
        return found

    @property
    def secret(self) -> str | None:
        """The token in use, for what must not show it."""
        return self._token

    def taken(self) -> None:
        """Hear that the endpoint knows us."""
        self._renewed = False

    def renew(self) -> bool:
        """Read the token again after it was refused; whether it is another one now, and worth another try at once."""
        old, self._token = self._token, None
        if old is None or self._renewed:
            return False  # one that is new each time, and refused each time, must not be tried without a pause
        try:
            self._token = self._read()
        except SinkError:
            return False  # said at the next attempt
        self._renewed = self._token != old
        return self._renewed

    def _read(self) -> str | None:
        settings = self.settings
        try:
            if settings.token_env is not None:
                text = os.environ[settings.token_env]
            elif settings.token_file is not None:
                with Path(settings.token_file).open(encoding="utf-8") as file:
                    text = file.read(MOST_TOKEN)
            elif callable(settings.token):
                text = settings.token()
            elif settings.token is None:
                return None
            else:
                return settings.token
        except KeyError:
            raise _none(f"the environment variable {settings.token_env!r} (token_env) is not set") from None
        except BaseException as error:  # a file that cannot be read, a callable that fails or exits
            why = error.strerror if isinstance(error, OSError) and settings.token_file else None
            raise _none(f"the token could not be read ({why or type(error).__name__})") from None
        text = text.strip() if isinstance(text, str) else ""
        if not header_value(text):
            raise _none("the token that was read is empty, or no printable ASCII")
        return text


def _none(text: str) -> SinkError:
    return SinkError(Failure(text, verdict=Verdict.BLOCKED, hint="see token=, token_env= or token_file="))
