"""Calls one tool with the Python SDK 2.x, all calls at once on one connection; takes and prints what call.mjs does."""

import argparse
import json

import anyio
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("url")
parser.add_argument("--token", required=True)
parser.add_argument("--mode", default="auto")
parser.add_argument("--tool", default="whoami")
parser.add_argument("--calls", type=int, default=1)
options = parser.parse_args()

answers: list = []
errors: list = []


def failed(error: BaseException) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    known = getattr(error, "error", None)
    errors.append(
        {
            "name": type(error).__name__,
            "code": getattr(known, "code", None),
            "message": str(error),
            "data": getattr(known, "data", None),
        }
    )


async def main() -> None:
    async def call(client: Client) -> None:
        try:
            result = await client.call_tool(options.tool, {})
            answers.append(result.structured_content or json.loads(result.content[0].text))
        except Exception as error:  # whatever the SDK makes of a refusal is the result
            failed(error)

    try:
        with anyio.fail_after(60):
            async with create_mcp_http_client(headers={"Authorization": f"Bearer {options.token}"}) as web:
                transport = streamable_http_client(options.url, http_client=web)
                async with Client(transport, mode=options.mode, cache=None) as client:
                    async with anyio.create_task_group() as calls:
                        for _ in range(options.calls):
                            calls.start_soon(call, client)
    except BaseException as error:
        failed(error)
    print(json.dumps({"answers": answers, "errors": errors}))


anyio.run(main)
