"""Cutting secrets out of addresses and texts before they are shown or saved. The rules of the whole project:

- Of a URL, neither the user, nor the password, nor the query (`?password=…`, a signature) is shown.
- A Redis URL (redis://, rediss://, unix://) is shown as scheme, host, port and path. Only the scheme is shown when an @
  comes behind the first / ? or #, as it may belong to a password that should have been quoted, and when there is no @
  and no proper host with a port, as in redis://:password.
- The URL of a file keeps its fragment too, and its path may hold an @. Only the scheme is shown when the @ is likely to
  belong to an unquoted password: what stands before the first / ? or # has a colon, but is no host with a port.
- An hf:// URL stays as it is: its @ names a revision, and its token is in the environment.
- In a text, all that follows a Redis URL counts as part of it, because a password may hold any character.
"""

from __future__ import annotations

import re

REDIS_SCHEMES = ("redis", "rediss", "unix")
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
"""A host, or an IPv6 address in brackets, and perhaps a port."""
SCHEME = r"\b[A-Za-z][A-Za-z0-9+.-]*://"
REDIS_URL = re.compile(rf"\b(?:{'|'.join(REDIS_SCHEMES)})://.*", re.DOTALL)
FILE_URL = re.compile(rf"""{SCHEME}(?:(?:(?!{SCHEME})\S)*@)?(?:(?!{SCHEME})[^\s'"<>)\]])*""")
"""A URL in a text, up to white space, a quotation mark or a bracket, or the next URL; these may stand before an @."""
BARE_QUERY = re.compile(r"""\?[^\s'"=]*=[^\s'")]*""")
"""The query of a path: drivers also quote URLs without scheme and host."""


def without_secrets(address: str) -> str:
    """An address as messages, logs and saved settings may show it.

    Args:
        address: a URL; a path, or any text that is no URL, is returned as it is.
    """
    scheme, is_url, rest = address.partition("://")
    if not is_url or scheme == "hf":
        return address
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    behind = rest[len(authority) :]
    _, has_user, host = authority.rpartition("@")
    is_redis, is_host = scheme in REDIS_SCHEMES, HOST.fullmatch(host) is not None
    if ("@" in behind and (is_redis or not is_host)) or (is_redis and not has_user and not is_host):
        return f"{scheme}://…"
    path, _, fragment = behind.partition("#")
    path, fragment = path.partition("?")[0], fragment.partition("?")[0]
    return f"{scheme}://{host}{path}" + (f"#{fragment}" if fragment and not is_redis else "")


def text_without_secrets(text: str) -> str:
    """A text, such as a driver's error or a command-line argument, with the secrets cut out of the URLs in it."""
    redis_url = REDIS_URL.search(text)
    before, behind = (text[: redis_url.start()], without_secrets(redis_url[0])) if redis_url else (text, "")
    return BARE_QUERY.sub("", FILE_URL.sub(lambda url: without_secrets(url[0]), before)) + behind
