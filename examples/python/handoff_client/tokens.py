"""What is signed and hashed: docs/wire.md, "Keys and statements"."""

import base64
import hashlib
import json
import secrets
import time
from typing import Any, Final

import rfc8785
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

Json = dict[str, Any]

ALGORITHM: Final = "Ed25519"  # RFC 9864; the older name EdDSA is refused
THUMBPRINT = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"
AUTHORITY = "attenuating_agent_token"


class BadToken(Exception):
    """A token that is not what it should be. Nothing in it may be believed."""


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def canonical(value: Any) -> bytes:
    """RFC 8785: the one way to write a JSON value, so that its hash means something."""
    return rfc8785.dumps(value)


def sha256(data: bytes) -> str:
    return encode(hashlib.sha256(data).digest())


def link_hash(token: str) -> str:
    """What par_hash and aat_hash are: of the signing input, without the signature."""
    return sha256(token.rpartition(".")[0].encode())


def salted_hash(salt: bytes, body: bytes) -> str:
    """What task_hash and body_hash are. The salt keeps a short body from being guessed by its hash."""
    return sha256(salt + body)


def request_hash(request: Json) -> str:
    """Of a request about a session, which is signed with an empty proof in it."""
    return sha256(canonical({**request, "proof": ""}))


def new_salt() -> bytes:
    return secrets.token_bytes(32)


def new_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, the rest random. Python has uuid.uuid7 from 3.14 on."""
    stamp = time.time_ns() // 1_000_000
    value = stamp << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Key:
    """The key of this process. Grants are bound to it, so that nobody can use a grant that was overheard."""

    def __init__(self) -> None:
        self._key = OKPKey.generate_key(ALGORITHM)

    @property
    def jwk(self) -> Json:
        """The public half, of exactly three members."""
        public = self._key.as_dict(private=False)
        return {name: public[name] for name in ("kty", "crv", "x")}

    @property
    def issuer(self) -> str:
        """What `iss` is in a link by this key."""
        return THUMBPRINT + thumbprint(self.jwk)

    def sign(self, typ: str, payload: Json) -> str:
        header = {"alg": ALGORITHM, "typ": typ}
        return jws.serialize_compact(header, canonical(payload), self._key, algorithms=[ALGORITHM])


def thumbprint(jwk: Json) -> str:
    """RFC 7638."""
    return sha256(canonical({name: jwk[name] for name in ("crv", "kty", "x")}))


def verify(token: str, typ: str, *jwks: Json) -> Json:
    """The payload of a token that one of the keys has signed; BadToken where none has."""
    for jwk in jwks:
        try:
            signed = jws.deserialize_compact(token, OKPKey.import_key(dict(jwk)), algorithms=[ALGORITHM])
        except (JoseError, ValueError):
            continue
        if signed.headers() != {"alg": ALGORITHM, "typ": typ}:
            raise BadToken(f"a token with the header {signed.headers()}, where one of type {typ} belongs")
        return loads(signed.payload)
    raise BadToken(f"a token of type {typ} that is signed by none of the {len(jwks)} keys it could be signed by")


def payload(token: str) -> Json:
    """What a token says, unverified: for those that verify() has seen, or that are our own."""
    return loads(decode(token.split(".")[1]))


def loads(data: bytes) -> Json:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise BadToken("JSON that is no object, where one belongs")
    return value


def verify_chain(chain: list[str], issuer_keys: list[Json], governor_keys: list[Json], key: Key) -> Json:
    """Checks a grant that was handed to us, and returns the payload of its last link.

    The root is by the issuer, every other link by the key that the one before is bound to. That is the governor's for
    an offer and a worker's for a claim, in turn; the last is bound to us.
    """
    if not chain:
        raise BadToken("a grant without a link")
    signers, parent = issuer_keys, ""
    link: Json = {}
    for depth, token in enumerate(chain):
        link = verify(token, "aat+jwt", *signers)
        if link.get("del_depth") != depth or link.get("par_hash", "") != parent:
            raise BadToken(f"link {depth} of the chain does not follow from the one before")
        bound = link["cnf"]["jwk"]
        if depth % 2 == 1 and bound not in governor_keys:
            raise BadToken(f"link {depth} of the chain, an offer, is not bound to a key of the governor")
        signers, parent = [bound], link_hash(token)
    if link["cnf"]["jwk"] != key.jwk:
        raise BadToken("the grant is bound to another key than ours")
    return link


def tools_of(link: Json) -> Json:
    """What a link permits: tool → argument → constraint."""
    details = [d for d in link["authorization_details"] if d.get("type") == AUTHORITY]
    if len(details) != 1:
        raise BadToken("a link without authority, or with two")
    tools: Json = details[0]["tools"]
    return tools


def describe(tools: Json) -> str:
    """Authority for people, on one line."""
    return ", ".join(
        f"{tool}({', '.join(f'{name} {_limits(constraint)}' for name, constraint in arguments.items())})"
        for tool, arguments in tools.items()
    )


def _limits(constraint: Json) -> str:
    rest = [json.dumps(value) for member, value in constraint.items() if member != "constraint_type"]
    return " ".join([constraint["constraint_type"], *rest])
