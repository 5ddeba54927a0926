"""The keys that open the data port: read from a file or a variable, and compared with what a request shows. Called when the router starts,
and by each client's connection for a head that it has not seen yet."""

import codecs
import hmac
import re
from collections.abc import Sequence

from multislo_router.shell.errors import Fault, Reason
from multislo_router.shell.request_head import RequestHead

_KEY = re.compile(rb"[\x21-\x7e]{1,512}")
LEGAL = "1 to 512 visible ASCII characters without a space between them"


def keys_in(content: bytes) -> tuple[bytes, ...]:
    """One key a line. Blank lines and lines that begin with `#` are skipped, blanks around a key too. Raises ValueError, which names a
    wrong line by its number and never by what is in it."""
    keys: list[bytes] = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        key = line.strip(b" \t")
        if not key or key.startswith(b"#"):
            continue
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"line {number} must be one key: {LEGAL}; a comment begins with # on a line of its own")
        keys.append(key)
    if not keys:
        raise ValueError("there is no key in it; it must hold at least one, each on a line of its own")
    return tuple(keys)


def check_key(keys: Sequence[bytes], head: RequestHead) -> None:
    """Raises a `Fault` unless the request shows one of the keys. All keys are compared, in constant time."""
    anthropic = head.target.is_anthropic
    shown = [_bearer(head.authorization)]
    if anthropic and head.api_key is not None:
        shown.append(head.api_key.strip())
    known = False
    for legal in keys:
        for key in shown:
            known |= hmac.compare_digest(key, legal)
    if not known:
        also = ", or x-api-key: KEY," if anthropic else ""
        raise Fault(Reason.UNAUTHORIZED, f"authorization: must be 'Bearer KEY'{also} with a key of this server")


def _bearer(authorization: bytes | None) -> bytes:
    scheme, _, key = (authorization or b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""
