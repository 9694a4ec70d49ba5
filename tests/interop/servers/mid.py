"""FastMCP of the Python SDK 1.x on Streamable HTTP at /mcp, with a session that lasts."""

import anyio
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.types import SamplingMessage, TextContent
from pydantic import AnyUrl, BaseModel

from events import MemoryEvents
from listen import port_argument, serve


class Events(MemoryEvents, EventStore, message=lambda message, event_id: EventMessage(message, event_id)):
    pass


server = FastMCP("mid", instructions="Tools for interop tests.", event_store=Events(), retry_interval=50, log_level="WARNING")
cancelled: list[str] = []


class Name(BaseModel):
    name: str


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
    raise ValueError("this tool always fails")


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
async def elicit_name(ctx: Context) -> str:
    """Asks the user for a name."""
    answer = await ctx.elicit("What is your name?", Name)
    return f"hello {answer.data.name}" if answer.action == "accept" else answer.action


@server.tool()
async def sample(prompt: str, ctx: Context) -> str:
    """Asks the client's model."""
    message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    # Related to this call, or the question goes to the standing stream, which may not be open yet.
    answer = await ctx.session.create_message([message], max_tokens=50, related_request_id=ctx.request_id)
    return f"{answer.model}: {answer.content.text}"


@server.tool()
async def touch(ctx: Context) -> str:
    """Says that memo://greeting and the list of resources changed, on the standing stream."""
    await ctx.session.send_resource_updated(AnyUrl("memo://greeting"))
    await ctx.session.send_resource_list_changed()
    return "touched"


@server.resource("memo://greeting", mime_type="text/plain")
def greeting() -> str:
    """A greeting."""
    return "hello from mid"


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
    serve(server.streamable_http_app(), port)
