"""Opens a session, has writer write a report, and prints it."""

import asyncio
import os
import sys

from handoff_client import Client, Identity, Refused, describe

FILES = {"path": {"constraint_type": "one_of", "values": ["/q3.csv", "/q4.csv"]}}
ONE_FILE = {"path": {"constraint_type": "exact", "value": "/q3.csv"}}


async def main() -> int:
    identity = Identity()
    writer = f"spiffe://{identity.trust_domain}/agent/writer"
    try:
        async with Client(os.environ["HANDOFF_URL"], identity) as client:
            root = await client.open_session("quarterly report", {"fs.read": FILES})
            print(f"session  {root.session}: at most {describe(root.tools)}", flush=True)
            try:
                task = b"Sum up the orders of /q3.csv."
                offered = await client.offer(root, writer, task, {"fs.read": ONE_FILE}, purpose="the third quarter")
                print(f"offered  {offered.id}: {offered.effect}, entry {offered.entry}", flush=True)
                result = await asyncio.wait_for(offered.result(), 120)
                print(f"result   {result.status} by {result.sender}, entry {result.entry}")
                print(f"         {result.body.decode()}", flush=True)
                await result.acknowledge()
            finally:
                closed = await client.close_session(root.session, "done")
                print(f"session  {closed['state']}: {closed['handoffs']} handed on, {closed['denied']} denied")
            return 0 if result.status == "completed" else 1
    except Refused as refusal:
        print(f"refused  {refusal}", file=sys.stderr)
        return 3
    finally:
        identity.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
