"""Calling a tool that has a guard in front: docs/wire.md, "Call a tool"."""

import asyncio
import http.client
import time
from urllib.parse import urlsplit

from .client import Grant, Refused
from .identity import Identity
from .tokens import Json, canonical, link_hash, loads, new_id

PATIENCE = 30  # seconds for one answer


class Tools:
    """A guarded server of tools, with its address and its SPIFFE ID."""

    def __init__(self, url: str, server: str, identity: Identity, audience: str | None = None) -> None:
        """audience is what the guard calls itself, where that is not the origin of the URL."""
        self._url = urlsplit(url)
        self._server = server
        self._identity = identity
        self._audience = audience or f"{self._url.scheme}://{self._url.netloc}"

    async def call(self, grant: Grant, tool: str, args: Json, tries: int = 3) -> bytes:
        """What the tool answers. Raises Refused, with the guard's code, where the guard says no."""
        while True:
            tries -= 1
            try:
                return await asyncio.to_thread(self._post, self.request(grant, tool, args))
            except Refused as refusal:
                if refusal.retry_after is None or tries <= 0:
                    raise
                await asyncio.sleep(refusal.retry_after)

    def request(self, grant: Grant, tool: str, args: Json) -> Json:
        """One call, for one try: what is proved is that we hold the key, and mean these very arguments."""
        proof = {
            "jti": new_id(),
            "iat": int(time.time()),
            "aat_id": grant.link["jti"],
            "aat_hash": link_hash(grant.chain[-1]),
            "aat_tool": tool,
            "hta": args,
            "aat_aud": self._audience,
        }
        return {"tool": tool, "args": args, "aat_chain": grant.chain, "aat_pop": grant.key.sign("aat-pop+jwt", proof)}

    def _post(self, request: Json) -> bytes:
        if self._url.scheme != "https" or self._url.hostname is None:
            raise ValueError("a tool is called over https")
        context = self._identity.tls(self._server)
        connection = http.client.HTTPSConnection(self._url.hostname, self._url.port, timeout=PATIENCE, context=context)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", self._url.path or "/", canonical(request), headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status < 300:
            return body
        if answer.getheader("Content-Type", "").startswith("application/json"):
            raise Refused(loads(body))
        raise OSError(f"the tool answers {answer.status}: {body[:200]!r}")
