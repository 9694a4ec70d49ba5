"""Calls a tool twice with the Python SDK 2.x; takes and prints what asked.mjs does."""

import argparse
import json
import sys

import anyio
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.types import ElicitResult

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("url")
parser.add_argument("--token", required=True)
parser.add_argument("--mode", default="auto")
parser.add_argument("--tool", required=True)
options = parser.parse_args()


def say(said: dict) -> None:
    print(json.dumps(said), flush=True)


async def told(said: dict) -> None:
    say(said)
    await anyio.to_thread.run_sync(sys.stdin.readline)


async def asked(_context: object, params: object) -> ElicitResult:
    await told({"asked": params.model_dump(by_alias=True, exclude_none=True)})
    return ElicitResult(action="accept")


async def main() -> None:
    async with create_mcp_http_client(headers={"Authorization": f"Bearer {options.token}"}) as web:
        transport = streamable_http_client(options.url, http_client=web)
        async with Client(transport, mode=options.mode, cache=None, elicitation_callback=asked) as client:

            async def call() -> dict:
                return {"answer": (await client.call_tool(options.tool, {})).model_dump(by_alias=True, exclude_none=True)}

            await told(await call())
            try:
                say(await call())
            except Exception as error:  # what the SDK makes of a legacy refusal
                await told({"code": error.error.code, "data": error.error.data})
                say(await call())


anyio.run(main)
