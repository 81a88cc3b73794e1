"""Works on what comes into its inbox: reads a file through the guard, and returns the sum of its numbers."""

import asyncio
import logging
import os

from handoff_client import Answer, Client, Identity, Refused, Task, Tools, describe


async def write(task: Task, tools: Tools) -> Answer:
    print(f"task     {task.id} from {task.sender}: {task.body.decode()}")
    print(f"may      {describe(task.grant.tools)}", flush=True)
    try:
        await tools.call(task.grant, "fs.read", {"path": "/q4.csv"})
    except Refused as refusal:
        print(f"stopped  /q4.csv: {refusal.code}", flush=True)
    table = (await tools.call(task.grant, "fs.read", {"path": "/q3.csv"})).decode()
    rows = [line.split(",") for line in table.splitlines()[1:]]
    print(f"read     /q3.csv: {len(rows)} rows", flush=True)
    return Answer(f"{sum(int(orders) for _, orders in rows)} orders in {len(rows)} months.".encode())


async def main() -> None:
    identity = Identity()
    tools = Tools(os.environ["TOOLS_URL"], f"spiffe://{identity.trust_domain}/guard/files", identity)
    try:
        async with Client(os.environ["HANDOFF_URL"], identity) as client:
            print(f"ready    {identity.spiffe_id}", flush=True)
            await client.serve(lambda task: write(task, tools))
    finally:
        identity.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
