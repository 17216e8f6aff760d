"""Passwords, tokens and signatures are taken out of whatever is logged, shown or stored: `redacted`."""

import re
from collections.abc import Mapping
from typing import Any, overload

HIDDEN = "***"

_EQUALS = r"(?:=|%(?:25)*3[Dd])"  # as it is, or encoded once or more for a place inside another address
_END = r"(?:&|;|%(?:25)*(?:26|3[Bb]))"
_NAMES = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|api[_-]?key|access[_-]?key(?:[_-]?id)?"
    r"|account[_-]?key|secret[_-]?key|private[_-]?key|shared[_-]?access[_-]?(?:key|signature)|connection[_-]?string)"
)
# How ODBC and shells quote a value.
_QUOTED = r"""\{(?:[^}]|\}\})*\}?|%(?:25)*7[Bb].*?(?:%(?:25)*7[Dd]|$)|"[^"]+"?|'[^']+'?"""

# A rule looks only so far from where it begins, for a text may be hostile: without bounds the time would grow with the
# square of its length.
_RULES = (
    # user:password@ of an address, the password with / or without (but not host:port/…@), also of an address that is
    # encoded inside another
    (re.compile(r"""://(?:[^\s/"']{0,2000}|[^\s@/:]{0,200}:(?!\d{1,5}[/"',])\S{0,1000})@"""), rf"://{HIDDEN}@"),
    (re.compile(r"(%(?:25)*3[Aa]%(?:25)*2[Ff]%(?:25)*2[Ff])[^\s&]{0,300}?%(?:25)*40"), rf"\1{HIDDEN}@"),
    # ;PWD=a value with spaces; up to the next part of a connection string
    (re.compile(rf"(?i)(;[\w\s.-]{{0,60}}{_NAMES}\s*=\s*)(?=[^;\r\n])(?:{_QUOTED})?[^;\r\n]*"), None),
    # ?sig=…&X-Amz-Credential=…: in an address also the short names are meant so
    (
        re.compile(
            rf"(?i)((?:[?&;]|%(?:25)*(?:26|3[Bb]|3[Ff]))[\w.-]{{0,60}}(?:{_NAMES}|key(?:[_-]?id)?|signature|sig|sas|auth"
            rf"|accessid){_EQUALS})(?=[^&\s])(?:{_QUOTED})?(?:(?!%(?:25)*(?:26|3[Bb]))[^&\s])*"
        ),
        None,
    ),
    # password=… anywhere else: a word of a command, a line of a log, odbc_connect=…%3BPWD%3D…
    (re.compile(rf"(?i)({_NAMES}\s*{_EQUALS}\s*)(?=[^\s&;])(?:{_QUOTED})?(?:(?!{_END})\S)*"), None),
    # {"password": "…"} and password: "…" within a text, also where that is quoted itself: {\"password\": \"…\"}
    (re.compile(rf"""(?i)({_NAMES}\\*["']?:\s*)(\\*["'])(?:(?!\2)(?:\\.|[^\\]))+\2?"""), None),
    (re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic)\s+)?)[^\s\"',}]+"), None),
    # what is known by its looks
    (
        re.compile(
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
        ),
        HIDDEN,
    ),
)
_MAY_HOLD = re.compile(r"[=:%]|AKIA|ASIA|hf_|gh[pousr]_|github_pat_")  # most texts hold none of these
_SECRET_KEY = re.compile(rf"(?i)(?:.*[^a-z])?{_NAMES}|.*[a-z](?:Password|Token|Secret|AccountKey|AccessKey|ApiKey)")


@overload
def redacted(value: str) -> str: ...
@overload
def redacted(value: Any) -> Any: ...
def redacted(value: Any) -> Any:
    """The value with *** in place of every password, token, key and signature in it.

    Texts are searched for addresses (user:password@, ?sig=…), connection strings (PWD=…) and words (password=…); of
    nested dicts and lists every text and key is, and of a dict each value whose key names a secret. Everything else
    stays as it is. What is redacted already stays so.
    """
    match value:
        case str():
            for rule, replacement in _RULES if _MAY_HOLD.search(value) else ():
                value = rule.sub(replacement or rf"\g<1>{HIDDEN}", value)
            return value
        case Mapping():
            return {
                redacted(key) if isinstance(key, str) else key: HIDDEN if _is_secret(key, item) else redacted(item)
                for key, item in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [redacted(item) for item in value]
        case _:
            return value


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, str) and value != "" and bool(_SECRET_KEY.fullmatch(key))


def secrets_in(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings that hold a secret, by their full names, each as it may be shown."""
    held: dict[str, str] = {}
    for key, value in settings.items():
        (name, shown), *_ = redacted({key: value}).items()
        if isinstance(value, Mapping):
            held |= secrets_in(value, f"{prefix}{name}.")
        elif name != key or shown != (list(value) if isinstance(value, tuple) else value):
            held[f"{prefix}{name}"] = str(shown)
    return held
