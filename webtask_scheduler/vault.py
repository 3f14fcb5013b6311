"""Encrypts what the database must not hold in plain text, with keys that rotate.

Sealed text names its key: `enc:1:<key id>:<Fernet token>`. So a missing key is reported by its id, and rows of an older
key are found without decrypting them. Of WEBTASK_ENCRYPTION_KEYS the first one encrypts and all of them decrypt.
"""

import functools
import hashlib
import hmac
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings

_FORM = "enc:1:"
KEY_ID_LENGTH = 8


class VaultError(Exception):
    """A sealed text cannot be read. The message says why and what to do, and holds nothing of the text."""


class KeyMissingError(VaultError):
    """The key of a sealed text is not among the settings."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(
            f"A value is encrypted with the key {key_id}, which is not in WEBTASK_ENCRYPTION_KEYS. Add that key again."
        )


def seal(text: str) -> str:
    """Return a text encrypted with the newest key."""
    keys = _keys()
    return keys.prefix + keys.fernets[keys.newest].encrypt(text.encode()).decode()


def unseal(sealed: str) -> str:
    """Return the text that was sealed. Raises VaultError."""
    return _unseal(_keys(), sealed)


def unseal_or_plain(text: str) -> str:
    """Return the text that was sealed, and text of releases that stored it plain as it is. Raises VaultError.

    It keeps the last thousand results, so use it for few values that are read often.
    """
    return _unseal_again(_keys(), text) if is_sealed(text) else text


def is_sealed(text: str) -> bool:
    """Return whether a text has the form of a sealed one, whatever its key."""
    return text.startswith(_FORM)


def newest_prefix() -> str:
    """Return how a text begins that is sealed with the newest key."""
    return _keys().prefix


def newest_key() -> str:
    """Return the id of the key that encrypts."""
    return _keys().newest


def missing_keys(key_ids: Sequence[str]) -> list[str]:
    """Return those ids whose keys are not in the settings."""
    return [key_id for key_id in key_ids if key_id not in _keys().fernets]


def fingerprints(data: bytes) -> list[bytes]:
    """Return a keyed hash of data for each key, the newest first.

    Whoever has the database but no key cannot test guesses of the data against it, as a plain hash would allow.
    """
    found = []
    for keyed in _keys().hashes:
        # A copy, because making one takes longer than hashing a request.
        one = keyed.copy()
        one.update(data)
        found.append(one.digest())
    return found


class _Keys:
    def __init__(self, keys: Sequence[str]) -> None:
        ids = [_id(key) for key in keys]
        self.newest = ids[0]
        self.prefix = f"{_FORM}{self.newest}:"
        self.fernets = {key_id: Fernet(key) for key_id, key in zip(ids, keys, strict=True)}
        secrets = [hmac.digest(key.encode(), b"fingerprint", "sha256") for key in keys]
        self.hashes = [hmac.new(secret, digestmod="sha256") for secret in secrets]


def _keys() -> _Keys:
    return _keys_of(tuple(settings.WEBTASK_ENCRYPTION_KEYS))


@functools.lru_cache(4)
def _keys_of(keys: tuple[str, ...]) -> _Keys:
    return _Keys(keys)


def _id(key: str) -> str:
    # The key is 32 random bytes, so a part of its hash says nothing about it.
    return hashlib.sha256(key.encode()).hexdigest()[:KEY_ID_LENGTH]


def _unseal(keys: _Keys, sealed: str) -> str:
    key_id, _, token = sealed.removeprefix(_FORM).partition(":")
    fernet = keys.fernets.get(key_id)
    if fernet is None:
        raise KeyMissingError(key_id[:KEY_ID_LENGTH])
    try:
        return fernet.decrypt(token).decode()
    except InvalidToken:
        # The chain would add nothing: the library does not say what is wrong.
        raise VaultError(
            f"A value that is encrypted with the key {key_id} is damaged and cannot be read. Give it again."
        ) from None


@functools.lru_cache(1024)
def _unseal_again(keys: _Keys, sealed: str) -> str:
    return _unseal(keys, sealed)
