"""MCPServer of the Python SDK 2.x on Streamable HTTP at /mcp; it serves the handshake era and 2026-07-28."""

from typing import Annotated

import anyio
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve, Sample
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.streamable_http import EventMessage, EventStore
from mcp_types import CreateMessageResult, SamplingMessage, TextContent
from pydantic import BaseModel

from events import MemoryEvents
from listen import port_argument, serve

server = MCPServer("new", version="1.0.0", instructions="Tools for interop tests.", log_level="WARNING")
cancelled: list[str] = []


class Events(MemoryEvents, EventStore, message=lambda message, event_id: EventMessage(message, event_id)):
    pass


class Name(BaseModel):
    name: str


def ask_name() -> Elicit[Name]:
    return Elicit("What is your name?", Name)


def ask_model(prompt: str) -> Sample:
    return Sample([SamplingMessage(role="user", content=TextContent(type="text", text=prompt))], max_tokens=50)


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
async def slow_count(n: int, ctx: Context) -> str:
    """Counts to n and reports each step."""
    for step in range(1, n + 1):
        await anyio.sleep(0.02)
        await ctx.report_progress(step, n, f"step {step}")
    return f"counted to {n}"


@server.tool()
def fail() -> str:
    """Fails."""
    raise ToolError("this tool always fails")


@server.tool()
async def wait_forever(ctx: Context) -> str:
    """Waits to be cancelled."""
    try:
        await ctx.report_progress(1, 2, "waiting")
        await anyio.sleep(60)
        return "nobody cancelled"
    except anyio.get_cancelled_exc_class():
        cancelled.append("wait_forever")
        raise


@server.tool()
def was_cancelled() -> bool:
    """Tells once whether a wait was cancelled."""
    seen = bool(cancelled)
    cancelled.clear()
    return seen


@server.tool()
async def resumable(n: int, ctx: Context) -> str:
    """Counts to n, but closes the stream half way, so that the client must come back for the rest."""
    for step in range(1, n + 1):
        if step == n // 2 + 2:
            # The step before was only stored, for replay; what follows goes out live on the stream that came back.
            await anyio.sleep(0.4)
        await ctx.report_progress(step, n, f"step {step}")
        if step == n // 2:
            await ctx.close_sse_stream()
    return f"resumed to {n}"


@server.tool()
async def elicit_name(who: Annotated[Name, Resolve(ask_name)]) -> str:
    """Asks the user for a name."""
    return f"hello {who.name}"


@server.tool()
async def sample(prompt: str, answer: Annotated[CreateMessageResult, Resolve(ask_model)]) -> str:
    """Asks the client's model."""
    return f"{answer.model}: {answer.content.text}"


@server.tool()
async def touch(ctx: Context) -> str:
    """Says that memo://greeting and the list of resources changed."""
    await ctx.notify_resource_updated("memo://greeting")
    await ctx.notify_resources_changed()
    if ctx.protocol_version < "2026-07-28":
        await ctx.session.send_resource_updated("memo://greeting")
        await ctx.session.send_resource_list_changed()
    return "touched"


@server.resource("memo://greeting", mime_type="text/plain")
def greeting() -> str:
    """A greeting."""
    return "hello from new"


@server.resource("memo://note/{name}", mime_type="text/plain")
def note(name: str) -> str:
    """A note by its name."""
    return f"note {name}"


@server.prompt()
def greet(name: str) -> str:
    """Greets somebody."""
    return f"Please greet {name}."


if __name__ == "__main__":
    port = port_argument(__doc__).port
    serve(server.streamable_http_app(event_store=Events(), retry_interval=50), port)
