"""Our signatures and hashes are those of docs/wire.md: the examples there went over a real wire."""

import json
import re
import unittest
from pathlib import Path

from handoff_client.identity import name_of, spiffe_id_of
from handoff_client.tokens import (
    BadToken,
    Json,
    Key,
    decode,
    link_hash,
    new_id,
    payload,
    request_hash,
    salted_hash,
    thumbprint,
    verify,
    verify_chain,
)

PAGE = (Path(__file__).parents[3] / "docs" / "wire.md").read_text()
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")


def example(name: str) -> list[str]:
    """The blocks of an example."""
    text = re.search(rf"<!-- example: {name} -->\n(.*?)<!-- end of example -->", PAGE, re.DOTALL)
    assert text is not None, name
    return re.findall(r"```\w+\n(.*?)```", text[1], re.DOTALL)


def body(block: str) -> Json:
    """The JSON of a message: what stands below its first empty line."""
    value: Json = json.loads(block.partition("\n\n")[2])
    return value


def headers(block: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in block.partition("\n\n")[0].splitlines()[1:])


class Page(unittest.TestCase):
    """One session, from the keys to the call of a tool."""

    def setUp(self) -> None:
        self.keys = body(example("keys")[1])
        self.open = body(example("open")[0])
        self.root: str = body(example("open")[2])["aat_chain"][0]
        self.offer = example("offer")[0]
        self.offered = headers(self.offer)["Handoff-Token"]
        self.claim = body(example("claim")[0])
        self.claimed = body(example("claim")[2])["claims"][0]["aat_chain"][2]

    def test_session(self) -> None:
        proof = verify(self.open["proof"], "handoff-session+jwt", self.open["jwk"])
        self.assertEqual(proof["request_hash"], request_hash(self.open))
        self.assertEqual(proof["sub"], name_of("spiffe://acme.example/agent/planner"))
        self.assertEqual(spiffe_id_of(proof["sub"]), "spiffe://acme.example/agent/planner")

    def test_offer(self) -> None:
        link = verify(self.offered, "aat+jwt", self.open["jwk"])
        self.assertEqual(link["par_hash"], link_hash(self.root))
        self.assertTrue(link["iss"].endswith(":" + thumbprint(self.open["jwk"])))
        salt, task = decode(headers(self.offer)["Handoff-Salt"]), self.offer.partition("\n\n")[2].strip()
        self.assertEqual(link["handoff"]["task_hash"], salted_hash(salt, task.encode()))

    def test_result(self) -> None:
        result = example("result")[0]
        said = verify(headers(result)["Handoff-Token"], "handoff-result+jwt", self.claim["jwk"])
        salt, returned = decode(headers(result)["Handoff-Salt"]), result.partition("\n\n")[2].strip()
        self.assertEqual(said["body_hash"], salted_hash(salt, returned.encode()))

    def test_call(self) -> None:
        proof = verify(body(example("call")[0])["aat_pop"], "aat-pop+jwt", self.claim["jwk"])
        self.assertEqual(proof["aat_hash"], link_hash(self.claimed))
        self.assertEqual(proof["aat_id"], payload(self.claimed)["jti"])

    def test_bytes(self) -> None:
        """What we sign is what the page shows, byte by byte, but for the key."""
        for token in TOKEN.findall(PAGE):
            header = json.loads(decode(token.split(".")[0]))
            self.assertEqual(Key().sign(header["typ"], payload(token)).rpartition(".")[0], token.rpartition(".")[0])

    def test_chain(self) -> None:
        issuer, governor = self.keys["issuer_keys"], self.keys["governor_keys"]

        class Worker(Key):
            jwk = self.claim["jwk"]

        chain, worker = [self.root, self.offered, self.claimed], Worker()
        self.assertEqual(verify_chain(chain, issuer, governor, worker)["del_depth"], 2)
        flipped = self.offered[:-3] + ("A" if self.offered[-3] != "A" else "B") + self.offered[-2:]
        for name, wrong in {
            "no link": ([], issuer, governor, worker),
            "a link too few": ([self.root, self.claimed], issuer, governor, worker),
            "another order": ([self.root, self.claimed, self.offered], issuer, governor, worker),
            "a flipped bit": ([self.root, flipped, self.claimed], issuer, governor, worker),
            "another issuer": (chain, governor, governor, worker),
            "another governor": (chain, issuer, issuer, worker),
            "another key than ours": (chain, issuer, governor, Key()),
            "the offer alone": (chain[:2], issuer, governor, worker),
        }.items():
            with self.subTest(name), self.assertRaises(BadToken):
                verify_chain(*wrong)


class Own(unittest.TestCase):
    def test_ids(self) -> None:
        ids = [new_id() for _ in range(1000)]
        self.assertEqual(len(set(ids)), len(ids))
        for each in ids:
            self.assertRegex(each, r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")

    def test_type(self) -> None:
        """A token of one type is none of another, and EdDSA is not Ed25519."""
        key = Key()
        with self.assertRaises(BadToken):
            verify(key.sign("aat-pop+jwt", {}), "aat+jwt", key.jwk)


if __name__ == "__main__":
    unittest.main()
