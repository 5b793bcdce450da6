r"""
What secrets and personal data look like in a text: the patterns that `redact` knows by name. Pure.

Written from published formats, and held against the test data of published detectors (tests/support/secrets.py):
`bearer` RFC 9110, 6750 and 7617; `jwt` RFC 7519 and 7516; `email` RFC 5322's dot-atom; `card` ISO/IEC 7812 with the
Luhn check; `iban` ISO 13616 with its mod-97 check and the lengths of SWIFT's registry; `private_key` RFC 7468, OpenSSH,
PGP, PuTTY; `url` RFC 3986; `aws`, `github`, `slack`, `stripe`, `google` their makers' formats, as gitleaks (MIT),
detect-secrets (Apache-2.0) and Nosey Parker (Apache-2.0) know them.

A hostile text must not cost more than its length. So no pattern starts twice in one run of its own characters and then
fails at the run's end: it starts at the run's beginning, or wants nothing after the run, or is short. And none
is tried unless a word that it cannot do without (`hints`) is in the text: most lines cost a search for each, in C.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

REDACTED = "[redacted]"


class Detector(NamedTuple):
    """One kind of secret: it is looked for if one of the hints is in the text; no hints: always."""

    name: str
    hints: tuple[str, ...]
    replaced: Callable[[str], str]


def _token(literal: str, rest: str) -> str:
    r"""
    Return a pattern of a token that begins with a literal (of one length), and not in the middle of a word.

    The literal stands first, for `re` then looks for it in C. A letter before it may belong to something else: "\n" in
    a repr, %3D in a URL, \u003d in JSON, the end of a colour (ESC[32m).
    """
    before = r"(?<![A-Za-z0-9]{0})|(?<=\\[nrt]{0})|(?<=%[0-9A-Fa-f][0-9A-Fa-f]{0})"
    before += r"|(?<=\\u[0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f]{0})|(?<=[\[;][0-9]m{0})|(?<=[\[;][0-9][0-9]m{0})"
    return f"{literal}(?:{before.replace('{0}', literal)}){rest}"


def _simple(name: str, hints: tuple[str, ...], *patterns: str, by: str = REDACTED) -> Detector:
    found = re.compile("|".join(patterns))

    def replaced(text: str) -> str:
        return found.sub(by, text)

    return Detector(name, hints, replaced)


def _checked(
    name: str, hints: tuple[str, ...], pattern: str, span: Callable[[re.Match[str]], tuple[int, int] | None]
) -> Detector:
    """Return a detector whose finds are judged by `span`: what is to be taken out, or None; then the search goes on."""
    search = re.compile(pattern).search

    def replaced(text: str) -> str:
        parts, kept, at = [], 0, 0
        while found := search(text, at):
            taken = span(found)
            if taken is None:
                at = found.start() + 1
            else:
                parts += [text[kept : taken[0]], REDACTED]
                kept = at = taken[1]
        return "".join([*parts, text[kept:]]) if parts else text

    return Detector(name, hints, replaced)


# --- tokens -----------------------------------------------------------------------------------------------------------

# "Basic authentication failed" is no secret: there is a digit, a "=", or a capital after a small letter in a real one.
_BEARER = (
    r"(?i:(?:bearer|basic)\s{1,8}|authorization[\"']{0,2}\s{0,8}[:=]\s{0,8}[\"']?(?:[a-z][a-z0-9-]{1,20}\s{1,8})?)"
    r"(?=[A-Za-z0-9+/._~-]*?(?:[0-9=]|[a-z][A-Z]))[A-Za-z0-9+/=._~-]{8,}"
)
_BEARER_HINTS = ("earer ", "EARER ", "asic ", "ASIC ", "uthorization", "UTHORIZATION")


def _jwt_span(found: re.Match[str]) -> tuple[int, int] | None:
    at = found[1].find("eyJ")  # {" in base64url; what stands before it in this run is none of it
    return None if at < 0 or len(found[1]) - at < 8 else (found.start() + at, found.end())


_PRIVATE_KEY = (
    # Without its END it was cut: all that follows may be key.
    r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,7}-{4,5}(?:[^-]+|-(?!---))*(?:-{4,5} ?END [A-Z0-9 ]{0,40}----)?",
    r"(?s:PuTTY-User-Key-File-[0-9].*?(?:Private-MAC: {0,8}[0-9a-f]+|\Z))",
)

_AWS_NAMED = (
    r"(?i:(aws_?(?:secret_?)?(?:access_?)?key|secret_?access_?key|aws_?session_?token)[\"']?\s{0,8}(?:=>|[:=])\s{0,8}[\"']?)"
    r"[A-Za-z0-9/+_-]{40,}={0,2}"
)
_AWS_HINTS = ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "ccess", "CCESS", "aws", "AWS")

# --- URLs -------------------------------------------------------------------------------------------------------------

# scheme://user:password@host. The look-ahead keeps "host:8080/@name" whole. A password ends where the next URL begins,
# or a text full of beginnings would be searched to its end from each; 4096 is above every token that serves as one.
URL_PASSWORD = re.compile(
    r"""(://[^\s/:@"'<>]*:)(?!\d+(?:[/?#\s]|$))(?:[^\s"'<>:]|:(?!//)){1,4096}@""",
)
_PARAMETER = (
    r"(?i:([?&;#](?:(?:access|refresh|id|auth|api|bearer|csrf|session|oauth|reset|x-amz-security)?[_-]?token|"
    r"(?:client[_-]?)?secret|(?:user)?pass(?:word|wd)?|pwd|api[_-]?key|sig|(?:x-(?:amz|goog)-)?signature|"
    r"x-(?:amz|goog)-credential)=))[^&\s\"'<>#;]+"
)

# --- numbers with a check ---------------------------------------------------------------------------------------------

# Lengths of the issuers (ISO/IEC 7812): Visa; Mastercard; American Express; Diners; JCB; Discover, UnionPay, Maestro;
# Mir. None of 13 digits: Visa's are gone, article numbers (EAN) have as many.
_ISSUED = re.compile(
    r"4(?:\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"3(?:0[0-5]|[689]\d)\d{11,16}|35(?:2[89]|[3-8]\d)\d{12,15}|(?:50|5[6-9]|6\d)\d{12,17}|220[0-4]\d{12,15}"
)
# Not the decimals of a number, and not a number with decimals.
_CARD = _token(
    "[2-6][0-9]",
    r"(?<![0-9]\...)[0-9][0-9](?:[0-9]{10,15}|"
    r"(%20|[ +-])(?:[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|[0-9]{4}\1[0-9]{4}\1[0-9]{2}|[0-9]{6}\1[0-9]{4,5})"
    r")(?![0-9]|\.[0-9])",
)


def _luhn(digits: str) -> bool:
    doubled = "".join([str(int(digit) * 2) for digit in digits[-2::-2]])
    return sum(map(int, doubled + digits[-1::-2])) % 10 == 0


def _card_span(found: re.Match[str]) -> tuple[int, int] | None:
    groups, between = [found[0]], found[1] or ""
    if between:
        groups = found[0].split(between)
    for count in (len(groups), len(groups) - 1):  # the last group may be the three digits from the back
        digits = "".join(groups[:count])
        if _ISSUED.fullmatch(digits) and _luhn(digits):
            return found.start(), found.start() + len(between.join(groups[:count]))
    return None


# Characters of an IBAN in each country: SWIFT's IBAN registry.
_IBAN_COUNTRIES = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
    "YE30 "
)
_IBAN_LENGTHS = {code[:2]: int(code[2:]) for code in _IBAN_COUNTRIES.split()}
_IBAN = _token("[A-Z][A-Z][0-9][0-9]", "(?:[ -]?[0-9A-Z]){11,30}")


def _iban_span(found: re.Match[str]) -> tuple[int, int] | None:
    text = found[0]
    length = _IBAN_LENGTHS.get(text[:2])
    if length is None:
        return None
    places = [place for place, character in enumerate(text) if character.isalnum()][:length]
    plain = "".join([text[place] for place in places])
    if len(plain) < length or int("".join([str(int(c, 36)) for c in plain[4:] + plain[:4]])) % 97 != 1:
        return None
    return found.start(), found.start() + places[-1] + 1


# --- people -----------------------------------------------------------------------------------------------------------

_EMAIL = (
    r"(?<![\w.+%-])[\w.+%-]+(?:@|%40)(?:[\w-]{1,63}\.){1,20}"
    # icon@2x.png and getty@tty1.service are names of files
    r"(?!(?:png|jpe?g|gif|svg|webp|service|socket)\b)(?:xn--[A-Za-z0-9-]{2,59}|[^\W\d_]{2,63})"
)

# In this order: what is longest first, so that no part of it is taken for something else.
DETECTORS = (
    _simple("private_key", ("PRIVATE KEY", "PuTTY-User"), *_PRIVATE_KEY),
    _simple("bearer", _BEARER_HINTS, _BEARER),
    _checked("jwt", ("eyJ",), r"(?<![\w-])([\w-]{8,})\.[\w-]{5,}={0,2}(?:\.[\w-]*={0,2}){0,3}", _jwt_span),
    _simple("url", ("=", "://"), _PARAMETER, r"(://)[^\s/:@\"'<>]{20,}(?=@)", by=rf"\1\2{REDACTED}"),
    _simple(
        "aws", _AWS_HINTS, _token("(?:AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])", r"[A-Z0-9]{16}(?![A-Za-z0-9])"), _AWS_NAMED
    ),
    _simple(
        "github",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        _token("gh[pousr]_", "[A-Za-z0-9]{36,}"),
        _token("github_pat_", "[A-Za-z0-9_]{22,}"),
    ),
    _simple(
        "slack",
        ("xox", "xapp-", "hooks.slack"),
        _token("xox[a-z]", r"(?:\.xox[a-z])?-(?=[0-9A-Za-z-]{0,40}?[0-9])[0-9A-Za-z-]{10,}"),
        _token("xapp-", "[0-9A-Za-z/+-]{20,}"),
        r"hooks\.slack\.com\\?/(?:services|workflows|triggers)\\?/[\w/\\-]{20,}",
    ),
    _simple(
        "stripe",
        ("_live_", "_test_", "whsec_"),
        _token("[sr]k_(?:live|test)_", "[A-Za-z0-9]{10,}"),
        _token("whsec_", "[A-Za-z0-9+/=]{16,}"),
    ),
    _simple(
        "google",
        ("AIza", "ya29.", "GOCSPX-", "1//0"),
        _token("AIza", "[A-Za-z0-9_-]{35}"),
        _token(r"ya29\.", "[A-Za-z0-9_-]{20,}"),
        _token("GOCSPX-", "[A-Za-z0-9_-]{20,}"),
        _token("1//0", "[A-Za-z0-9_-]{30,}"),
    ),
    _checked("card", (), _CARD, _card_span),
    _checked("iban", (), _IBAN, _iban_span),
    _simple("email", ("@", "%40"), _EMAIL),
)
BY_NAME = {detector.name: detector for detector in DETECTORS}


def own_detector(pattern: str) -> Detector:
    """Return what looks for somebody's own regular expression: in every text, and as long as that takes."""
    return _simple("own", (), pattern)
