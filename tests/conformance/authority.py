"""A certificate authority of the test's own, which nobody else has reason to trust, and what it signs."""

import base64
import hashlib
import os
import ssl
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Authority:
    """An authority whose own certificate is `ca` in a folder, next to those that it signs."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.ca = self.folder / "ca.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.ca))

    def ca_key(self):
        """The authority's own key in PEM, for another program to sign with."""
        return self._authority.private_key_pem.bytes()

    def sign(self, name="edge", *hosts, not_before=None, not_after=None, is_rsa=False):
        """Signs a certificate for these hosts, or for this one, and puts it and its key in place.

        Returns what names the two in `certificates` of a port. The key is of the curve P-256, or one of RSA.
        """
        key_type = trustme.KeyType.RSA if is_rsa else trustme.KeyType.ECDSA
        signed = self._authority.issue_cert(
            *(hosts or ["localhost", "127.0.0.1"]), key_type=key_type, not_before=not_before, not_after=not_after
        )
        chain = b"".join(blob.bytes() for blob in signed.cert_chain_pems)
        self.put(f"{name}.pem", chain)
        self.put(f"{name}.key", signed.private_key_pem.bytes())
        return f'{{ certificate = "{self.folder}/{name}.pem", key = "{self.folder}/{name}.key" }}'

    def put(self, name, content):
        """Puts a file in place of the one before it: who looks finds either, and no half of one."""
        new = self.folder / f"{name}.new"
        new.write_bytes(content)
        # `check` warns of keys that everybody may read.
        new.chmod(0o600)
        os.replace(new, self.folder / name)

    def read(self, name):
        """What is in a file of the folder."""
        return (self.folder / name).read_bytes()

    def not_after(self, name):
        """When a certificate expires, in seconds since the epoch."""
        certificate = x509.load_pem_x509_certificate(self.read(f"{name}.pem"))
        return int(certificate.not_valid_after_utc.timestamp())

    def context(self, *, version=None):
        """What a client needs that trusts this authority alone; it speaks one version where that is given."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def server_context(self, name="edge", *hosts, version=None, **arguments):
        """What a server needs that has a certificate for these hosts; it speaks one version where that is given."""
        self.sign(name, *hosts, **arguments)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def key_hash(self, name):
        """The hash of a certificate's public key, as browsers pin it (RFC 7469 section 2.4)."""
        certificate = x509.load_pem_x509_certificate(self.read(f"{name}.pem"))
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(key).digest()).decode()


def tls_of(authority):
    """The line that has a port speak TLS, with a certificate of this authority; nothing where there is none."""
    return "" if authority is None else f"tls = {{ certificates = [{authority.sign()}] }}"
