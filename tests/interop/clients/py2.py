"""A client on the Python SDK 2.x. `--mode auto` probes for 2026-07-28 first, `legacy` shakes hands as before, `modern` does not."""

import json
from contextlib import asynccontextmanager

import anyio
import mcp_types as types
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from scenario import ABSENT, Inbox, arguments, start


def plain(model) -> dict:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


async def sampling(context, params):
    text = params.messages[0].content.text
    return types.CreateMessageResult(
        role="assistant", model="toy", content=types.TextContent(type="text", text=f"you said {text}")
    )


async def elicitation(context, params):
    return types.ElicitResult(action="accept", content={"name": "Ada"})


async def roots(context):
    return types.ListRootsResult(roots=[types.Root(uri="file:///work", name="work")])


class Sdk:
    def __init__(self, client: Client, inbox: Inbox) -> None:
        self.client = client
        self.inbox = inbox

    async def list(self, kind, cursor):
        verb = {
            "tools": self.client.list_tools,
            "resources": self.client.list_resources,
            "templates": self.client.list_resource_templates,
            "prompts": self.client.list_prompts,
        }[kind]
        return plain(await verb(cursor=cursor))

    async def call(self, name, args, progress=None):
        return plain(await self.client.call_tool(name, args, progress_callback=progress))

    async def read(self, uri):
        return plain(await self.client.read_resource(uri))

    async def prompt(self, name, args):
        return plain(await self.client.get_prompt(name, args))

    async def cancel(self, group, settled):
        group.cancel_scope.cancel()

    async def changes(self):
        if self.client.protocol_version < "2026-07-28":
            resources = self.client.server_capabilities.resources
            if resources and resources.subscribe:
                await self.client.subscribe_resource("memo://greeting")
            await self.client.call_tool("touch", {})
            return await self.inbox.wait_for("notifications/resources/updated", "notifications/resources/list_changed")
        seen = set()
        async with self.client.listen(resources_list_changed=True, resource_subscriptions=["memo://greeting"]) as events:
            await self.client.call_tool("touch", {})
            with anyio.move_on_after(5):
                async for event in events:
                    seen.add(type(event).__name__)
                    if len(seen) == 2:
                        break
        return sorted(seen)


@asynccontextmanager
async def session(options, wire):
    headers = {"Authorization": f"Bearer {options.token}"} if options.token else {}
    inbox = Inbox()

    def http(**settings):
        client = create_mcp_http_client(**settings)
        client.event_hooks["response"].append(wire.response)
        return client

    async def message(message):
        inbox.methods.add(getattr(message, "method", type(message).__name__))

    async with http(headers=headers) as client:
        mode = "2026-07-28" if options.mode == "modern" else options.mode
        if options.transport == "sse":
            # The first HTTP+SSE servers don't answer a method they don't know, so a probe would hang.
            transport, mode = sse_client(options.url, headers=headers, httpx_client_factory=http), "legacy"
        elif options.transport == "stdio":
            command, *rest = json.loads(options.url)
            transport = StdioServerParameters(command=command, args=rest)
        else:
            transport = streamable_http_client(options.url, http_client=client)
        async with Client(
            transport,
            mode=mode,
            cache=None,
            read_timeout_seconds=20,
            sampling_callback=sampling,
            elicitation_callback=elicitation,
            list_roots_callback=roots,
            message_handler=message,
        ) as mcp:
            told = {
                "protocol": mcp.protocol_version,
                "server": mcp.server_info.name if mcp.server_info else ABSENT,
                "capabilities": sorted(plain(mcp.server_capabilities)),
            }
            yield told, Sdk(mcp, inbox)


if __name__ == "__main__":
    start(arguments(__doc__, modes=("auto", "legacy", "modern")), session)
