"""The keys of a client of TLS, for records that no library would send."""

import hmac
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tls_client import APPLICATION_DATA, HANDSHAKE, record

# Where a hello has its random bytes: behind the headers of the record and of the message, and its version.
RANDOM = slice(5 + 4 + 2, 5 + 4 + 2 + 32)
TAG_SIZE = 16

# Messages of the handshake (RFC 8446 section 4).
CLIENT_HELLO, SERVER_HELLO, KEY_UPDATE, FINISHED = 1, 2, 24, 20


def message(kind, body, *, size=None):
    """A message of the handshake; `size` claims another length."""
    return struct.pack("!I", kind << 24 | (len(body) if size is None else size)) + body


def key_update(*, asks=True):
    """The message that says that the next record has other keys, and asks for the same or does not."""
    return message(KEY_UPDATE, bytes([asks]))


class Sealer13:
    """Seals records of TLS 1.3 in place of a client's library, from the first of a stage on."""

    def __init__(self, client, secrets, *, stage="CLIENT_TRAFFIC_SECRET_0"):
        self._set(secrets_of(client, secrets)[stage], *algorithms(client))

    def _set(self, secret, key_size, digest):
        self._secret, self._key_size, self._digest = secret, key_size, digest
        self._key = AESGCM(self.expand(b"key", key_size))
        self._start = int.from_bytes(self.expand(b"iv", 12))
        self._count = 0

    def expand(self, label, size):
        """HKDF-Expand-Label with the secret in force (RFC 8446 section 7.1)."""
        label = b"tls13 " + label
        info = struct.pack("!HB", size, len(label)) + label + b"\0"
        return HKDFExpand(self._digest, size, info).derive(self._secret)

    def seal(self, kind, body, *, padding=0):
        """A record of this type, which is said to be one of application data, as all are."""
        inner = body + (b"" if kind is None else bytes([kind])) + bytes(padding)
        head = record(APPLICATION_DATA, b"", size=len(inner) + TAG_SIZE)
        nonce = (self._start ^ self._count).to_bytes(12)
        self._count += 1
        return head + self._key.encrypt(nonce, inner, head)

    def update(self, *, asks=True):
        """A KeyUpdate; what follows is sealed with the next keys."""
        sealed = self.seal(HANDSHAKE, key_update(asks=asks))
        self._set(self.expand(b"traffic upd", self._digest.digest_size), self._key_size, self._digest)
        return sealed


class Sealer12:
    """Seals records of TLS 1.2 in place of a client's library, from the first after its Finished on."""

    def __init__(self, client, secrets):
        key_size, digest = algorithms(client)
        master = secrets_of(client, secrets)["CLIENT_RANDOM"]
        seed = b"key expansion" + client.first_heard[RANDOM] + client.first_said[RANDOM]
        block = b""
        chained = seed
        # RFC 5246 section 5.
        while len(block) < 2 * key_size + 8:
            chained = hmac.digest(master, chained, digest.name)
            block += hmac.digest(master, chained + seed, digest.name)
        self._key = AESGCM(block[:key_size])
        self._start = block[2 * key_size : 2 * key_size + 4]
        self._count = 1

    def seal(self, kind, body):
        """A record of this type."""
        number = struct.pack("!Q", self._count)
        self._count += 1
        head = number + record(kind, b"", size=len(body))
        return record(kind, number + self._key.encrypt(self._start + number, body, head))


def algorithms(client):
    """The size of keys, and the hash that they are derived by, of the suite that was agreed on."""
    name = client.tls.cipher()[0].replace("-", "_").replace("AES", "AES_").replace("__", "_")
    assert "GCM" in name, name
    return (32 if "AES_256" in name else 16), (hashes.SHA384() if name.endswith("384") else hashes.SHA256())


def secrets_of(client, file):
    """The secrets of a client's connection, by their label, from a file that its library writes them to."""
    lines = (line.split() for line in file.read_text().splitlines() if not line.startswith("#"))
    random = client.first_said[RANDOM].hex()
    return {label: bytes.fromhex(secret) for label, of, secret in lines if of == random}
