"""A client on the Python SDK 1.x, over Streamable HTTP or HTTP+SSE."""

from contextlib import asynccontextmanager
from datetime import timedelta

import anyio
import mcp.types as types
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from pydantic import AnyUrl

from scenario import Inbox, arguments, start


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
    def __init__(self, client: ClientSession, inbox: Inbox, capabilities: types.ServerCapabilities) -> None:
        self.subscribes = bool(capabilities.resources and capabilities.resources.subscribe)
        self.client = client
        self.inbox = inbox

    async def list(self, kind, cursor):
        verb = {
            "tools": self.client.list_tools,
            "resources": self.client.list_resources,
            "templates": self.client.list_resource_templates,
            "prompts": self.client.list_prompts,
        }[kind]
        return plain(await verb(params=types.PaginatedRequestParams(cursor=cursor)))

    async def call(self, name, args, progress=None):
        return plain(await self.client.call_tool(name, args, progress_callback=progress))

    async def read(self, uri):
        return plain(await self.client.read_resource(AnyUrl(uri)))

    async def prompt(self, name, args):
        return plain(await self.client.get_prompt(name, args))

    async def cancel(self, group, settled):
        # This SDK sends nothing when a caller gives up, so the notification is sent by hand; ids count up from 0.
        params = types.CancelledNotificationParams(requestId=self.client._request_id - 1, reason="enough")
        await self.client.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
        # Its own servers answer a cancelled request with an error; a server that keeps to the specification answers nothing.
        with anyio.move_on_after(1):
            await settled.wait()
        group.cancel_scope.cancel()

    async def changes(self):
        if self.subscribes:
            await self.client.subscribe_resource(AnyUrl("memo://greeting"))
        await self.client.call_tool("touch", {})
        return await self.inbox.wait_for("notifications/resources/updated", "notifications/resources/list_changed")


@asynccontextmanager
async def session(options, wire):
    headers = {"Authorization": f"Bearer {options.token}"} if options.token else {}
    inbox = Inbox()

    def http(**settings):
        client = create_mcp_http_client(**settings)
        client.event_hooks["response"].append(wire.response)
        return client

    async def message(message):
        if isinstance(message, types.ServerNotification):
            inbox.methods.add(message.root.method)

    async with http(headers=headers) as client:
        if options.transport == "sse":
            transport = sse_client(options.url, headers=headers, httpx_client_factory=http)
        else:
            transport = streamable_http_client(options.url, http_client=client)
        async with transport as (read, write, *_):
            async with ClientSession(
                read,
                write,
                read_timeout_seconds=timedelta(seconds=20),
                sampling_callback=sampling,
                elicitation_callback=elicitation,
                list_roots_callback=roots,
                message_handler=message,
            ) as mcp:
                result = await mcp.initialize()
                told = {
                    "protocol": result.protocolVersion,
                    "server": result.serverInfo.name,
                    "capabilities": sorted(plain(result.capabilities)),
                }
                yield told, Sdk(mcp, inbox, result.capabilities)


if __name__ == "__main__":
    start(arguments(__doc__), session)
