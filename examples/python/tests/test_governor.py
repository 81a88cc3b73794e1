"""What must not happen does not: against a governor and a guarded tool that run, as in README.md."""

import asyncio
import datetime
import os
import ssl
import tempfile
import time
import unittest
import unittest.mock
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from nats.aio.msg import Msg

import handoff_client.client
from handoff_client import Answer, Client, Grant, Identity, Refused, Sent, Task, Tools
from handoff_client.tokens import Json, loads

URL = os.environ["HANDOFF_URL"]
TOOLS_URL = os.environ["TOOLS_URL"]
SOCKETS = Path(os.environ.get("HANDOFF_DATA") or "handoff-data").absolute() / "ca" / "sock"

HOME = "spiffe://handoff.local"
WRITER = HOME + "/agent/writer"
FILES = {"fs.read": {"path": {"constraint_type": "one_of", "values": ["/q3.csv", "/q4.csv"]}}}
ONE_FILE = {"fs.read": {"path": {"constraint_type": "exact", "value": "/q3.csv"}}}
PATIENCE = 90  # seconds for what should come in a moment


class Governed(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.identities = {
            name: Identity(f"unix://{SOCKETS}/{name}.sock") for name in ("planner", "writer", "stranger")
        }
        self.planner = await self.enterAsyncContext(self.agent("planner"))
        self.root = await self.planner.open_session("test", FILES)

    async def asyncTearDown(self) -> None:
        await self.planner.close_session(self.root.session, "the test is over")
        for identity in self.identities.values():
            self.addCleanup(identity.close)

    def agent(self, name: str) -> Client:
        return Client(URL, self.identities[name])

    def tools(self, name: str) -> Tools:
        return Tools(TOOLS_URL, HOME + "/guard/files", self.identities[name])

    @asynccontextmanager
    async def writer(self, work: Callable[[Task], Awaitable[Answer]]) -> AsyncIterator[Client]:
        async with self.agent("writer") as client:
            serving = asyncio.create_task(client.serve(work))
            try:
                yield client
            finally:
                serving.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await serving

    async def outcome(self, sent: Sent) -> bytes:
        result = await asyncio.wait_for(sent.result(), PATIENCE)
        await result.acknowledge()
        return result.body

    async def refused(self, code: str, doing: Awaitable[object], recorded: bool) -> None:
        with self.assertRaises(Refused) as caught:
            await asyncio.wait_for(doing, PATIENCE)
        self.assertEqual(caught.exception.code, code, caught.exception)
        self.assertEqual(caught.exception.entry is not None, recorded, caught.exception)


class Offers(Governed):
    async def test_widened(self) -> None:
        """More than one holds: another tool, another argument, a longer time."""
        anything: Json = {"fs.read": {"path": {"constraint_type": "wildcard"}}}
        other: Json = {"fs.write": {}}
        for tools in (other, anything):
            sent = await self.planner.offer(self.root, WRITER, b"", tools)
            self.assertEqual(sent.effect, "deny")
            await self.refused("widened", sent.result(), recorded=True)
        longer = Grant(self.root.chain, self.root.key, self.root.expires_at + 1)
        sent = await self.planner.offer(longer, WRITER, b"", ONE_FILE)
        await self.refused("expired", sent.result(), recorded=True)

    async def test_signed_by_another(self) -> None:
        """A chain that was overheard is of no use without its key. What is not proved is not recorded."""
        async with self.agent("planner") as other:
            stolen = Grant(self.root.chain, other.key, self.root.expires_at)
            sent = await other.offer(stolen, WRITER, b"", ONE_FILE)
            self.assertIsNone(sent.entry)
            await self.refused("token_invalid", sent.result(), recorded=False)

    async def test_sent_again(self) -> None:
        """The same bytes are the same offer, over another connection, too."""
        published: list[tuple[str, bytes, dict[str, str]]] = []
        publish = self.planner._publish

        async def spy(subject: str, body: bytes, headers: dict[str, str], sent: Sent, until: int) -> None:
            published.append((subject, body, headers))
            await publish(subject, body, headers, sent, until)

        self.planner._publish = spy  # type: ignore[method-assign]
        sent = await self.planner.offer(self.root, WRITER, b"once", ONE_FILE)
        first, before = sent.entry, self.planner._connection
        self.planner._stale.set()  # as with a new SVID
        while self.planner._connection is before:
            await asyncio.sleep(0.01)
        sent.settled.clear()
        sent.entry = None
        await publish(*published[0], sent, int(time.time()) + PATIENCE)
        self.assertEqual(sent.entry, first)
        self.assertEqual((await self.planner.session_status(self.root.session))["handoffs"], 1)

        async def work(task: Task) -> Answer:
            return Answer(task.body + b" and for all")

        async with self.writer(work):
            self.assertEqual(await self.outcome(sent), b"once and for all")


class Losses(Governed):
    """What is lost on the way is sent again, and nothing happens twice."""

    async def test_of_a_receipt(self) -> None:
        planner, lost = self.agent("planner"), 0
        hear = planner._on_receipt

        async def lossy(msg: Msg) -> None:
            nonlocal lost
            lost += 1
            if lost > 1:
                await hear(msg)

        planner._on_receipt = lossy  # type: ignore[method-assign]
        async with planner:
            root = await planner.open_session("test", FILES)
            sent = await asyncio.wait_for(planner.offer(root, WRITER, b"", ONE_FILE), PATIENCE)
            self.assertEqual((sent.effect, lost), ("allow", 2))
            self.assertEqual((await planner.close_session(root.session, "test"))["handoffs"], 1)

    async def test_of_an_answer(self) -> None:
        connection = self.planner._connection
        assert connection is not None
        asked: list[Json] = []
        ask = connection.request

        async def lossy(subject: str, payload: bytes, timeout: float) -> Msg:
            answer = await ask(subject, payload, timeout=timeout)
            asked.append(loads(payload))
            if len(asked) == 1:
                raise nats.errors.TimeoutError
            return answer

        connection.request = lossy  # type: ignore[method-assign, assignment]
        root = await self.planner.open_session("test", FILES)
        self.assertEqual([request["id"] for request in asked], [root.session, root.session])
        self.assertNotEqual(asked[0]["proof"], asked[1]["proof"])
        await self.planner.close_session(root.session, "test")

    async def test_of_the_connection(self) -> None:
        assert self.planner._connection is not None
        await self.planner._connection.close()
        self.assertEqual((await self.planner.session_status(self.root.session))["state"], "open")


class Leases(Governed):
    async def test_of_nothing(self) -> None:
        """A task and a result of no bytes are some, all the same."""

        async def work(task: Task) -> Answer:
            self.assertEqual((task.body, task.labels, task.purpose), (b"", [], ""))
            return Answer(b"")

        async with self.writer(work):
            sent = await self.planner.offer(self.root, WRITER, b"", {})
            self.assertEqual(await self.outcome(sent), b"")

    async def test_renewed(self) -> None:
        """Work may last longer than a renewal, and ends when the task is no longer ours."""
        began, stopped = asyncio.Event(), asyncio.Event()

        async def work(task: Task) -> Answer:
            if task.body == b"short":
                await asyncio.sleep(0.5)  # some renewals
                return Answer(b"done")
            began.set()
            try:
                await asyncio.Future()
            finally:
                stopped.set()
            raise AssertionError

        with unittest.mock.patch.object(handoff_client.client, "RENEW", 0.1):
            async with self.writer(work):
                sent = await self.planner.offer(self.root, WRITER, b"short", ONE_FILE)
                self.assertEqual(await self.outcome(sent), b"done")
                sent = await self.planner.offer(self.root, WRITER, b"endless", ONE_FILE)
                await asyncio.wait_for(began.wait(), PATIENCE)
                await self.planner.close_session(self.root.session, "enough")
                await asyncio.wait_for(stopped.wait(), PATIENCE)
                await self.refused("session_closed", sent.result(), recorded=True)


class Claims(Governed):
    async def test_of_another_agent(self) -> None:
        sent = await self.planner.offer(self.root, WRITER, b"for writer alone", ONE_FILE)
        async with self.agent("stranger") as stranger:
            await self.refused("handoff_unknown", stranger.claim(self.root.session, sent.id), recorded=False)

    async def test_of_another_process(self) -> None:
        """A task that its worker left is another's, once the lease is over; it was not lost."""
        sent = await self.planner.offer(self.root, WRITER, b"patience", ONE_FILE)
        async with self.agent("writer") as first:
            task = await first.claim(self.root.session, sent.id)
        async with self.agent("writer") as second:
            await self.refused("already_claimed", second.claim(self.root.session, sent.id), recorded=False)

        async def work(task: Task) -> Answer:
            return Answer(b"taken over: " + task.body)

        async with self.writer(work):
            self.assertEqual(await self.outcome(sent), b"taken over: patience")
        async with self.agent("writer") as late:
            late.key = first.key
            await self.refused("superseded", late.result(task, Answer(b"I am back")), recorded=False)


class Calls(Governed):
    async def test_outside_the_grant(self) -> None:
        granted: list[Grant] = []

        async def work(task: Task) -> Answer:
            tools, grant = self.tools("writer"), task.grant
            granted.append(grant)
            await self.refused("not_granted", tools.call(grant, "fs.write", {"path": "/q3.csv"}), recorded=False)
            wrong: list[Json] = [{"path": "/q4.csv"}, {"path": "/q3.csv", "at": 0}, {}]
            for args in wrong:
                await self.refused("not_granted", tools.call(grant, "fs.read", args), recorded=False)
            # Another's grant, with its proof; the same request twice; a proof of other arguments.
            request = tools.request(grant, "fs.read", {"path": "/q3.csv"})
            await self.refused("caller_mismatch", self.post("stranger", request), recorded=False)
            request = tools.request(grant, "fs.read", {"path": "/q3.csv"})
            await self.post("writer", request)
            await self.refused("proof_invalid", self.post("writer", request), recorded=False)
            request = {**tools.request(grant, "fs.read", {"path": "/q4.csv"}), "args": {"path": "/q3.csv"}}
            await self.refused("proof_invalid", self.post("writer", request), recorded=False)
            return Answer(await tools.call(grant, "fs.read", {"path": "/q3.csv"}))

        async with self.writer(work):
            sent = await self.planner.offer(self.root, WRITER, b"read", ONE_FILE)
            self.assertTrue((await self.outcome(sent)).startswith(b"month,"))

        async def until_refused() -> None:
            while True:
                await self.tools("writer").call(granted[0], "fs.read", {"path": "/q3.csv"})

        # The guard hears of the end by itself, maybe a moment after us.
        await self.refused("parent_ended", until_refused(), recorded=False)

    async def post(self, agent: str, request: Json) -> bytes:
        return await asyncio.to_thread(self.tools(agent)._post, request)


class Servers(Governed):
    """Who is not the governor gets nothing from us, not even our name."""

    async def impostor(self, certificate: str) -> bytes:
        """Has an agent connect to a server with this certificate, and returns what it was sent."""
        got = bytearray()
        ended = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"headers":true,"max_payload":1048576,"proto":1}\r\n')
            got.extend(await reader.read())
            writer.close()
            ended.set()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with self.assertRaises(ssl.SSLCertVerificationError):
                async with Client(f"tls://127.0.0.1:{port}", self.identities["planner"]):
                    pass
            server.close()
        return bytes(got)

    async def test_of_another_name(self) -> None:
        """Another agent of our own trust domain is not the governor, though its chain is good."""
        svid = self.identities["stranger"]._source.get_x509_context().default_svid
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "svid.pem")
            svid.save(path, path + ".key", Encoding.PEM)
            Path(path).write_bytes(Path(path).read_bytes() + Path(path + ".key").read_bytes())
            self.assertEqual(await self.impostor(path), b"")

    async def test_of_another_authority(self) -> None:
        """The governor's name in a certificate that anybody could make."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        name = x509.Name([])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(HOME + "/governor")]), True)
            .sign(key, hashes.SHA256())
        )
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "svid.pem")
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            Path(path).write_bytes(certificate.public_bytes(Encoding.PEM) + private)
            self.assertEqual(await self.impostor(path), b"")


if __name__ == "__main__":
    unittest.main()
