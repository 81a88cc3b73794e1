"""Who we are, and who the others are: SPIFFE over TLS. docs/wire.md, "Connect" and "Names, IDs, times"."""

import os
import ssl
import tempfile
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import TrustDomain, X509Source


class Identity:
    """An agent's X.509-SVID from the Workload API, always the newest."""

    def __init__(self, socket: str | None = None) -> None:
        """socket is the Workload API's, as unix:///…; where it is left out, SPIFFE_ENDPOINT_SOCKET says it."""
        self._source = X509Source(socket_path=socket, timeout_in_seconds=30)

    def close(self) -> None:
        self._source.close()

    @property
    def spiffe_id(self) -> str:
        return str(self._source.get_x509_context().default_svid.spiffe_id)

    @property
    def trust_domain(self) -> str:
        return trust_domain(self.spiffe_id)

    def on_renewal(self, call: Callable[[], None]) -> Callable[[], None]:
        """Has call called, from another thread, whenever there is a new SVID or a new bundle. Returns what ends that."""
        self._source.subscribe_for_updates(call)
        return lambda: self._source.unsubscribe_for_updates(call)

    def tls(self, server: str, below: str = "") -> ssl.SSLContext:
        """Mutual TLS with the one server that has this SPIFFE ID. Make a new one for each connection: SVIDs are short.

        Given below, a server whose SPIFFE ID begins with that will do, too: it must end in a slash.

        SPIFFE checks names in the certificate's URI and not those of DNS, which Python cannot do by itself. So the check
        of host names is off, and two others take its place: the chain must end in the bundle of the server's own trust
        domain, and no other authority; and _peer() looks for the SPIFFE ID before the handshake ends. Either alone
        would let any agent be the governor.
        """
        held = self._source.get_x509_context()
        bundle = held.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain(trust_domain(server)))
        if bundle is None:
            raise ssl.SSLError(f"the Workload API gives no bundle for the trust domain of {server}")
        context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.server, context.below = server, below
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what is in the bundle is trusted, self-signed or not
        context.load_verify_locations(cadata="".join(_pem(c) for c in bundle.x509_authorities))
        svid = held.default_svid
        key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        # Python's ssl reads keys from files alone. This one is ours only, and gone in a moment.
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "svid.pem")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(key + "".join(_pem(c) for c in svid.cert_chain))
            context.load_cert_chain(path)
        return context


class _Object(ssl.SSLObject):
    """What asyncio speaks TLS with, and so nats-py."""

    def do_handshake(self) -> None:
        super().do_handshake()
        _peer(self.context, self.getpeercert(binary_form=True))


class _Socket(ssl.SSLSocket):
    """What http.client speaks TLS with."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _peer(self.context, self.getpeercert(binary_form=True))


class _Context(ssl.SSLContext):
    server: str
    below: str
    sslobject_class: Any = _Object
    sslsocket_class: Any = _Socket


def _peer(context: ssl.SSLContext, certificate: bytes | None) -> None:
    """Refuses a server that is not the expected one. The chain was verified before; nothing has been sent yet."""
    assert isinstance(context, _Context)
    uris: list[str] = []
    if certificate is not None:
        try:
            extensions = x509.load_der_x509_certificate(certificate).extensions
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            pass
    if len(uris) != 1 or uris[0] != context.server and not (context.below and uris[0].startswith(context.below)):
        raise ssl.SSLCertVerificationError(f"the server is {uris}, and not {context.server}")


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def trust_domain(spiffe_id: str) -> str:
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]


def name_of(spiffe_id: str) -> str:
    """A SPIFFE ID as one token of a NATS subject."""
    return spiffe_id.removeprefix("spiffe://").replace(".", "=d").replace("/", "=s")


def spiffe_id_of(name: str) -> str:
    return "spiffe://" + name.replace("=s", "/").replace("=d", ".")
