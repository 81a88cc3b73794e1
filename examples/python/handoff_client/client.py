"""An agent's end of the wire, from docs/wire.md alone."""

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client as Connection
from nats.aio.msg import Msg

from .identity import Identity, name_of, spiffe_id_of
from .tokens import (
    AUTHORITY,
    BadToken,
    Json,
    Key,
    canonical,
    encode,
    link_hash,
    loads,
    new_id,
    new_salt,
    payload,
    request_hash,
    salted_hash,
    tools_of,
    verify_chain,
)

log = logging.getLogger("handoff")

# nats-py does not tell its stream that there is TLS below, of which asyncio warns at each end of a connection.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received()" not in record.getMessage())

PROOF_LIFE = 60  # seconds, the longest there may be
RENEW = 10  # seconds between two renewals of a lease, which is for 30
PULL = 25  # seconds that a pull waits; it may be 30
NOT_OURS = 5  # seconds after which another process may have what this one did not ask for
KEYS_LIFE = 60  # seconds until the governor is asked for its keys again
QUEUE_FULL = 10077  # JetStream's err_code: wait, and send again


def nak(delay: float) -> bytes:
    """Gives a message back, to come again after so many seconds."""
    return b"-NAK " + canonical({"delay": int(delay * 1e9)})


async def stop(task: asyncio.Task[None] | None) -> None:
    """Cancels until it has an effect: before Python 3.12, one that meets a message in wait_for() is lost."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


class Refused(Exception):
    """A refusal: the code to act on, the sentence for people, and the ledger's entry where it is recorded."""

    def __init__(self, answer: Json) -> None:
        error = answer.get("error") or {}
        self.reasons: list[Json] = answer.get("reasons", [])
        self.code: str = error.get("code") or (self.reasons[0]["code"] if self.reasons else "unknown")
        self.message: str = error.get("message") or (self.reasons[0]["message"] if self.reasons else "")
        self.retry_after: float | None = error.get("retry_after")
        self.entry: int | None = answer.get("entry")
        super().__init__(f"{self.code}: {self.message}")


@dataclass(frozen=True)
class Grant:
    """Authority of this process for one task: a chain of links, the last bound to the process's key."""

    chain: list[str]
    key: Key
    expires_at: int

    @property
    def link(self) -> Json:
        return payload(self.chain[-1])

    @property
    def session(self) -> str:
        return str(self.link["handoff"]["session"])

    @property
    def tools(self) -> Json:
        return tools_of(self.link)


@dataclass(frozen=True)
class Verdict:
    """What the governor has decided: allow, deny or hold."""

    effect: str
    reasons: list[Json]
    entry: int | None
    granted: Json | None

    @property
    def refusal(self) -> Refused:
        return Refused({"reasons": self.reasons, "entry": self.entry})


@dataclass(frozen=True)
class Result:
    """What came back. Acknowledge it once it is safe with you: until then it comes again."""

    status: str
    body: bytes
    content_type: str
    sender: str
    entry: int
    acknowledge: Callable[[], Awaitable[None]]


@dataclass
class Sent:
    """An offer or a result on its way. Known by an ID: the handoff's, or the result token's."""

    id: str
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # receipt, verdict or result: do not send again
    news: asyncio.Queue[Verdict | Result] = field(default_factory=asyncio.Queue)
    effect: str | None = None  # of the receipt, or what was here before it
    entry: int | None = None  # of the decision; None where it is not known, or was not recorded
    seen: set[tuple[str, int | None]] = field(default_factory=set)  # kinds and entries that came before
    newest: int = -1  # entry of the newest verdict
    results: list[str] = field(default_factory=list)  # where the result, and each repeat of it, is acknowledged
    done: bool = False  # the result was acknowledged

    async def result(self) -> Result:
        """Waits for what comes back. Raises Refused where nothing will; waits on while a person is asked."""
        while True:
            match await self.news.get():
                case Result() as result:
                    return result
                case Verdict(effect="deny") as verdict:
                    raise verdict.refusal
                case verdict:
                    log.info("%s: %s", self.id, verdict)


@dataclass
class Task:
    """A task that is ours: what to do, and the authority to do it."""

    id: str
    session: str
    grant: Grant
    body: bytes
    content_type: str
    purpose: str
    sender: str
    labels: list[str]


@dataclass(frozen=True)
class Answer:
    """What a worker returns. status is completed or failed."""

    body: bytes
    content_type: str = "text/plain"
    status: str = "completed"


class Client:
    """One process of an agent: one identity, one key, one connection at a time."""

    def __init__(self, url: str, identity: Identity, trust_domain: str | None = None) -> None:
        """trust_domain is the governor's, where it is not our own."""
        self.url = url
        self.identity = identity
        self.governor = f"spiffe://{trust_domain or identity.trust_domain}/governor"
        self.name = name_of(identity.spiffe_id)
        self.key = Key()
        self._keys: Json = {}
        self._keys_until = 0.0
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._stale = asyncio.Event()  # the connection is gone, or began with an older SVID
        self._sent: dict[str, Sent] = {}
        self._start: Callable[[Msg], bool] = lambda _: False  # begins to work on a task, where somebody does
        self._working: dict[str, list[str]] = {}  # handoff's ID → where its notices are acknowledged
        self._keeper: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def renewed() -> None:
            loop.call_soon_threadsafe(self._stale.set)

        self._forget_renewals = self.identity.on_renewal(renewed)
        try:
            await self._connect()  # the first time, what is wrong is for the caller to hear
        except BaseException:
            self._forget_renewals()
            raise
        self._keeper = asyncio.create_task(self._stay_connected())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._forget_renewals()
        for task in (self._keeper, self._reader, *self._retiring):
            await stop(task)
        if self._connection is not None:
            await self._connection.close()

    # The connection.

    async def _connect(self) -> None:
        self._stale.clear()

        async def errored(error: Exception) -> None:
            log.warning("nats: %s", error)  # permissions violations come here; their requests run into a time limit

        async def closed() -> None:
            if connection is self._connection:
                self._stale.set()

        # Reconnecting is ours: nats-py would do it with the SVID of the first time, and gives up when that has expired.
        connection = Connection()
        await connection.connect(
            self.url,
            tls=self.identity.tls(self.governor, self.governor.removesuffix("governor") + "nats/"),
            tls_handshake_first=True,
            allow_reconnect=False,
            error_cb=errored,
            closed_cb=closed,
            connect_timeout=10,
        )
        try:
            await connection.subscribe("handoff.receipt", cb=self._on_receipt)
            await connection.flush()  # from here on no receipt is missed
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        self._connected.set()
        self._reader = asyncio.create_task(self._read_inbox(connection))

    async def _stay_connected(self) -> None:
        while True:
            await self._stale.wait()
            old, reader, wait = self._connection, self._reader, 0.1
            if old is not None and old.is_closed:
                self._connected.clear()
            while True:
                try:
                    await self._connect()
                    break
                except Exception as error:  # noqa: BLE001 - all that can be done is to try again
                    log.warning("connecting: %s", error)
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, 10)
            if old is not None and reader is not None:
                retiring = asyncio.create_task(self._retire(old, reader))
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, connection: Connection, reader: asyncio.Task[None]) -> None:
        """Closes a connection once what is under way there has ended: its last pull takes longest."""
        try:
            await asyncio.wait([reader])
        finally:
            await stop(reader)
            await connection.close()

    async def _link(self) -> Connection:
        while True:
            await self._connected.wait()
            connection = self._connection
            if connection is not None and connection.is_connected:
                return connection
            self._connected.clear()
            self._stale.set()

    # Requests.

    async def request(self, subject: str, make: Callable[[], Json], timeout: float = 30) -> Json:
        """Asks until there is an answer: silence and `unavailable` mean that nothing was decided.

        make() makes the request anew for each try, since a proof is for one.
        """
        end, wait = time.monotonic() + timeout, 0.2
        while True:
            try:
                reply = await (await self._link()).request(subject, canonical(make()), timeout=5)
                answer = loads(reply.data)
            except (TimeoutError, nats.errors.Error) as error:
                answer = {"error": {"code": "unavailable", "message": str(error) or "no answer"}}
            if "error" not in answer:
                return answer
            refusal = Refused(answer)
            if refusal.code != "unavailable" or time.monotonic() > end:
                raise refusal
            await asyncio.sleep(max(wait, refusal.retry_after or 0))
            wait = min(2 * wait, 5)

    async def keys(self) -> Json:
        """Whom to trust. The connection is to the governor itself: _connect() has seen to it."""
        if time.monotonic() > self._keys_until:
            self._keys = await self.request("handoff.keys", dict)
            self._keys_until = time.monotonic() + KEYS_LIFE
        return self._keys

    def _proof(self) -> Json:
        now = int(time.time())
        return {"aud": self.governor, "sub": self.name, "jti": new_id(), "iat": now, "exp": now + PROOF_LIFE}

    def _about_session(self, verb: str, body: Json) -> Callable[[], Json]:
        def make() -> Json:
            proof = {**self._proof(), "verb": verb, "request_hash": request_hash(body)}
            return {**body, "proof": self.key.sign("handoff-session+jwt", proof)}

        return make

    async def _verify(self, chain: list[str], governor_jwk: Json, session: str) -> Grant:
        """A grant, if it is one, and ours. A governor's key that is new to us may be newer than what we know."""
        keys = await self.keys()
        if governor_jwk not in keys["governor_keys"]:
            self._keys_until = 0
            keys = await self.keys()
        if governor_jwk not in keys["governor_keys"]:
            raise BadToken("governor_jwk is not a key of the governor")
        try:
            link = verify_chain(chain, keys["issuer_keys"], keys["governor_keys"], self.key)
            to, of, until = link["handoff"]["to"], link["handoff"]["session"], int(link["exp"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadToken(f"a chain that cannot be read: {error!r}") from error
        if to != self.name or of != session:
            raise BadToken("the grant is for another agent, or of another session")
        return Grant(chain, self.key, until)

    # Sessions.

    async def open_session(self, objective: str, tools: Json, *, ttl: int = 3600, max_hops: int = 2) -> Grant:
        """Opens a session in our own name, and returns its root: a grant with what the policy leaves of the tools."""
        body = {
            "id": new_id(),
            "objective": objective,
            "principal": {"kind": "workload", "name": self.name},
            "tools": tools,
            "ttl": ttl,
            "max_hops": max_hops,
            "jwk": self.key.jwk,
        }
        answer = await self.request("handoff.session.open", self._about_session("session.open", body))
        return await self._verify(answer["aat_chain"], answer["governor_jwk"], str(body["id"]))

    async def session_status(self, session: str) -> Json:
        return await self.request("handoff.session.status", self._about_session("session.status", {"session": session}))

    async def close_session(self, session: str, reason: str) -> Json:
        """Ends everything under the session, wherever it is."""
        body = {"session": session, "reason": reason}
        return await self.request("handoff.session.close", self._about_session("session.close", body))

    # Offers.

    async def offer(
        self,
        grant: Grant,
        to: str,
        body: bytes,
        tools: Json,
        *,
        content_type: str = "text/plain",
        purpose: str = "",
        mode: str = "delegate",
        ttl: int | None = None,
        labels: Iterable[str] = (),
    ) -> Sent:
        """Hands a task on, and returns once the governor has decided; the outcome is Sent.result()'s.

        to is a SPIFFE ID. tools must lie within the grant's; ttl, in seconds, within its time.
        """
        under, now, salt = grant.link, int(time.time()), new_salt()
        expires = min(grant.expires_at, now + ttl) if ttl is not None else grant.expires_at
        receiver = name_of(to)
        handoff: Json = {
            "session": grant.session,
            "to": receiver,
            "mode": mode,
            "task_hash": salted_hash(salt, body),
            "content_type": content_type,
            "deadline": expires,
        }
        if purpose:
            handoff["purpose"] = purpose
        if all_labels := sorted({*under["handoff"].get("labels", ()), *labels}):
            handoff["labels"] = all_labels
        link: Json = {
            "jti": new_id(),
            "iss": grant.key.issuer,
            "iat": max(now, under["iat"]),
            "exp": expires,
            "cnf": {"jwk": (await self.keys())["governor_keys"][0]},
            "del_depth": under["del_depth"] + 1,
            "del_max_depth": under["del_max_depth"],
            "par_hash": link_hash(grant.chain[-1]),
            "authorization_details": [{"type": AUTHORITY, "tools": tools}],
            "handoff": handoff,
        }
        headers = {
            "Handoff-Token": grant.key.sign("aat+jwt", link),
            "Handoff-Salt": encode(salt),
            "Content-Type": content_type,
        }
        sent = self._sent[link["jti"]] = Sent(link["jti"])
        await self._publish(f"handoff.offer.{grant.session}.{receiver}", body, headers, sent, expires)
        return sent

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str], sent: Sent, until: int) -> None:
        """Sends the very same bytes until there is a receipt. What JetStream says is only that it is queued.

        TimeoutError where there was none until the end: then nobody knows whether it was accepted.
        """
        wait = 1.0
        while not sent.settled.is_set():
            if time.time() > until:
                raise TimeoutError(f"{sent.id}: no receipt came in time")
            try:
                await (await self._link()).jetstream().publish(subject, body, timeout=5, headers=dict(headers))
            except nats.errors.MaxPayloadError:
                raise
            except nats.js.errors.APIError as error:
                if error.err_code != QUEUE_FULL:
                    raise
            except (TimeoutError, nats.errors.Error) as error:
                log.info("%s: not queued: %s", sent.id, error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sent.settled.wait(), wait)
            wait = min(2 * wait, 10)

    async def _on_receipt(self, msg: Msg) -> None:
        for entry in loads(msg.data)["entries"]:
            if sent := self._sent.get(entry["id"]):
                sent.entry, sent.effect = entry["index"], entry["effect"]
                sent.settled.set()

    # The inbox.

    async def _read_inbox(self, connection: Connection) -> None:
        """Pulls what is there, until there is another connection. All processes of the agent share the inbox."""
        inbox = connection.jetstream(prefix="handoff.inbox")
        pull = await inbox.pull_subscribe_bind("inbox", stream="INBOX")
        while connection is self._connection and not connection.is_closed:
            try:
                for msg in await pull.fetch(16, timeout=PULL):
                    await self._sort(msg)
            except (TimeoutError, nats.errors.ConnectionClosedError):
                pass  # nothing came
            except Exception:  # what was not sorted comes again
                log.exception("inbox")
                await asyncio.sleep(0.5)

    async def _sort(self, msg: Msg) -> None:
        """Gives a message to whoever waits for it in this process, or back for another one."""
        headers = msg.headers or {}
        kind, handoff = headers.get("Handoff-Kind", ""), headers.get("Handoff-Id", "")
        entry = int(headers["Handoff-Entry"]) if "Handoff-Entry" in headers else None
        if kind == "task":
            if handoff in self._working:
                self._working[handoff].append(msg.reply)  # a repeat; it is acknowledged with the first
            elif not self._start(msg):
                await self._give_back(msg)
            return
        body = loads(msg.data) if kind == "verdict" else {}
        sent = self._sent.get(body.get("result") or handoff)  # a verdict that names a result is about that
        if sent is None:
            await self._give_back(msg)
            return
        if sent.effect is None:  # it was faster than the receipt
            sent.effect, sent.entry = body.get("effect", "allow"), entry if kind == "verdict" else None
        sent.settled.set()
        repeat = (kind, entry) in sent.seen
        sent.seen.add((kind, entry))
        if kind == "result":
            sent.results.append(msg.reply)
            if sent.done:
                await self._acknowledge(msg.reply)
            elif not repeat:
                sent.news.put_nowait(self._result(sent, msg, entry))
            return
        if not repeat and (entry is None or entry > sent.newest):
            sent.newest = max(sent.newest, entry or 0)
            sent.news.put_nowait(Verdict(body["effect"], body.get("reasons", []), entry, body.get("granted")))
        await self._acknowledge(msg.reply)

    def _result(self, sent: Sent, msg: Msg, entry: int | None) -> Result:
        async def acknowledge() -> None:
            sent.done = True
            for reply in sent.results:
                await self._acknowledge(reply)

        headers = msg.headers or {}
        sender, content_type = spiffe_id_of(headers["Handoff-From"]), headers.get("Content-Type", "")
        return Result(headers["Handoff-Status"], msg.data, content_type, sender, entry or 0, acknowledge)

    async def _acknowledge(self, reply: str, how: bytes = b"+ACK") -> None:
        """By the connection that there is now, which need not be the one that the message came over."""
        with contextlib.suppress(nats.errors.Error):  # lost, it comes again and is known
            await (await self._link()).publish(reply, how)

    async def _give_back(self, msg: Msg) -> None:
        """Later each time: whoever it is for may be gone for good."""
        await self._acknowledge(msg.reply, nak(NOT_OURS * min(msg.metadata.num_delivered, 12)))

    # Work.

    async def serve(self, work: Callable[[Task], Awaitable[Answer]], at_once: int = 8) -> None:
        """Works on tasks until cancelled; what is more than at_once is left to the agent's other processes.

        A task survives its worker: it is acknowledged at the end, and comes again where nobody does.
        """
        async with asyncio.TaskGroup() as workers:

            def start(notice: Msg) -> bool:
                if len(self._working) >= at_once:
                    return False
                self._working[(notice.headers or {})["Handoff-Id"]] = [notice.reply]
                workers.create_task(self._work_on(notice, work))
                return True

            self._start = start
            try:
                await asyncio.Future()  # nothing ends it but being cancelled
            finally:
                self._start = lambda _: False

    async def _work_on(self, notice: Msg, work: Callable[[Task], Awaitable[Answer]]) -> None:
        headers = notice.headers or {}
        handoff, session = headers["Handoff-Id"], headers["Handoff-Session"]
        delay: float | None = None
        try:
            task = await self.claim(session, handoff)
            async with self._lease(task):
                await self._return(task, await self._answer(task, work))
        except Refused as refusal:
            log.info("task %s: %s", handoff, refusal)
            if refusal.code in ("already_claimed", "unavailable"):
                delay = refusal.retry_after or NOT_OURS
        except Exception:  # one task must not end the others; this one is tried again
            log.exception("task %s", handoff)
            delay = NOT_OURS
        finally:
            notices = self._working.pop(handoff)
        for reply in notices:
            await self._acknowledge(reply, b"+ACK" if delay is None else nak(delay))

    async def _answer(self, task: Task, work: Callable[[Task], Awaitable[Answer]]) -> Answer:
        try:
            return await work(task)
        except Exception:
            log.exception("task %s", task.id)
            return Answer(b"the worker could not do it", status="failed")  # the reason is ours, and not for the wire

    async def _claim(self, session: str, handoff: str, renew: bool) -> Json:
        ids = [handoff]

        def make() -> Json:
            proof = {**self._proof(), "ids": ids}
            request: Json = {"ids": ids, "jwk": self.key.jwk, "proof": self.key.sign("handoff-claim+jwt", proof)}
            if renew:
                request["renew"] = True
            return request

        answer: Json = (await self.request(f"handoff.claim.{session}", make))["claims"][0]
        if "error" in answer:
            raise Refused(answer)
        return answer

    async def claim(self, session: str, handoff: str) -> Task:
        """Makes a task ours, for half a minute at a time. serve() does it for what comes into the inbox."""
        answer = await self._claim(session, handoff, renew=False)
        grant = await self._verify(answer["aat_chain"], answer["governor_jwk"], session)
        return Task(
            id=handoff,
            session=session,
            grant=grant,
            body=base64.b64decode(answer.get("task", ""), validate=True),
            content_type=answer.get("content_type", ""),
            purpose=answer.get("purpose", ""),
            sender=spiffe_id_of(answer["from"]),
            labels=answer.get("labels", []),
        )

    @contextlib.asynccontextmanager
    async def _lease(self, task: Task) -> AsyncIterator[None]:
        """Keeps the task ours while we work on it. Where it is no longer, the work is stopped: Refused says why."""
        worker = asyncio.current_task()
        assert worker is not None
        lost: list[Refused] = []

        async def keep() -> None:
            while True:
                await asyncio.sleep(RENEW)
                for reply in self._working.get(task.id, ()):
                    await self._acknowledge(reply, b"+WPI")
                try:
                    await self._claim(task.session, task.id, renew=True)
                except Refused as refusal:
                    if refusal.code != "unavailable":
                        lost.append(refusal)
                        worker.cancel()
                        return

        keeper = asyncio.create_task(keep())
        try:
            yield
        except asyncio.CancelledError:
            if not lost:
                raise
            worker.uncancel()
            raise lost[0] from None
        finally:
            keeper.cancel()

    async def _return(self, task: Task, answer: Answer) -> None:
        """Returns a result, and waits until it stands. One that policy denies is replaced by the news of that."""
        try:
            await self.result(task, answer)
        except Refused as refusal:
            if refusal.entry is None:  # not recorded: the task is no longer ours
                raise
            log.warning("task %s: the result was denied: %s", task.id, refusal)
            await self.result(task, Answer(f"the result was denied: {refusal.code}".encode(), status="failed"))

    async def result(self, task: Task, answer: Answer) -> None:
        salt, result = new_salt(), new_id()
        token: Json = {
            "jti": result,
            "id": task.id,
            "aud": self.governor,
            "iat": int(time.time()),
            "status": answer.status,
            "body_hash": salted_hash(salt, answer.body),
            "content_type": answer.content_type,
        }
        headers = {
            "Handoff-Id": task.id,
            "Handoff-Token": self.key.sign("handoff-result+jwt", token),
            "Handoff-Salt": encode(salt),
            "Content-Type": answer.content_type,
        }
        sent = self._sent[result] = Sent(result)
        await self._publish(f"handoff.result.{task.session}", answer.body, headers, sent, task.grant.expires_at)
        if sent.effect == "allow":
            return
        while True:  # denied, refused, or held for a person: a verdict says which
            verdict = await sent.news.get()
            assert isinstance(verdict, Verdict)
            if verdict.effect == "allow":
                return
            if verdict.effect == "deny":
                raise verdict.refusal
