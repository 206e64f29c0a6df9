"""A private certificate authority for one run, and the certificates that the tests want of it."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates and keeps them as PEM files in ``directory``.

    :ivar ca_file: its own certificate.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the live tests")])
        self._now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        own = (
            self._builder(self._name, self._name, self._key, days=2)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int, begins: int = -2
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(issuer)
            .subject_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now + begins * _DAY)
            .not_valid_after(self._now + (days - 1) * _DAY)
        )

    def certificate(
        self,
        file_name: str,
        *names: str,
        expired: bool = False,
        not_yet_valid: bool = False,
        self_signed: bool = False,
        subject_only: bool = False,
        for_clients: bool = False,
    ) -> tuple[Path, Path]:
        """The files of a certificate for ``names`` (host names or addresses), and of its key.

        :param subject_only: the name is in the subject alone, where nobody looks any more (RFC 9525 section 1.2).
        :param for_clients: it may be used by clients, and not by servers.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        issuer, issuer_key = (subject, key) if self_signed else (self._name, self._key)
        days, begins = (0 if expired else 2), -2
        if not_yet_valid:
            days, begins = 4, 1
        builder = self._builder(issuer, subject, key, days=days, begins=begins)
        if for_clients:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        if not subject_only:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
        signed = builder.sign(issuer_key, hashes.SHA256())
        certificate_file = self._directory / f"{file_name}.pem"
        key_file = self._directory / f"{file_name}.key"
        certificate_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file

    def server_context(self, file_name: str, *names: str, **wrong: bool) -> ssl.SSLContext:
        """What a server with such a certificate needs; ``wrong`` as for :meth:`certificate`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate(file_name, *names, **wrong))
        return context

    def client_context(self) -> ssl.SSLContext:
        """What a client that trusts this authority alone needs."""
        return ssl.create_default_context(cafile=str(self.ca_file))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
