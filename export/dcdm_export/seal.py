"""Seals: how an engine built here is told from one that came with a folder. Loading an engine runs code from its file.

The secret stays with the user who builds, in `$XDG_STATE_HOME/dcdm` (`~/.local/state/dcdm`); no folder carries it. A
seal says only that whoever holds the secret wrote these bytes. Elsewhere, or without the secret, nothing is sealed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

SECRET_BYTES = 32


def seal(text: str) -> str:
    """64 hex digits; empty where no secret can be kept. Makes the secret at the first call."""
    secret = _secret(make=True)
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest() if secret else ""


def is_sealed(text: str, by: str) -> bool:
    """Whether `by` is the seal that this user would set."""
    # makes none: who has built nothing here has sealed nothing
    secret = _secret(make=False)
    return bool(secret) and hmac.compare_digest(hmac.new(secret, text.encode(), hashlib.sha256).hexdigest(), by)


def _secret(*, make: bool) -> bytes:
    """Empty when there is none, or none that can be read or kept."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(state, "dcdm", "seal.key")
    try:
        if make and not file.exists():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # whole before it has its name: nobody reads half of a secret
            fresh = file.with_name(f".{secrets.token_hex(8)}.part")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(SECRET_BYTES))
            try:
                os.link(fresh, file)  # whoever comes first: two builds at a time must not have two secrets
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        found = file.read_bytes()
    except OSError:
        return b""
    return found if len(found) == SECRET_BYTES else b""
