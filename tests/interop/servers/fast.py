"""FastMCP 4 on Streamable HTTP at /mcp; it serves the handshake era and 2026-07-28."""

import anyio
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError
from mcp.server.streamable_http import EventMessage, EventStore

from events import MemoryEvents
from listen import port_argument, serve


class Events(MemoryEvents, EventStore, message=lambda message, event_id: EventMessage(message, event_id)):
    pass


server = FastMCP("fast", version="1.0.0")
cancelled: list[str] = []


@server.tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool
async def slow_count(n: int, ctx: Context) -> str:
    """Counts to n and reports each step."""
    for step in range(1, n + 1):
        await anyio.sleep(0.02)
        await ctx.report_progress(step, n, f"step {step}")
    return f"counted to {n}"


@server.tool
def fail() -> str:
    """Fails."""
    raise ToolError("this tool always fails")


@server.tool
async def wait_forever(ctx: Context) -> str:
    """Waits to be cancelled."""
    try:
        await ctx.report_progress(1, 2, "waiting")
        await anyio.sleep(60)
        return "nobody cancelled"
    except anyio.get_cancelled_exc_class():
        cancelled.append("wait_forever")
        raise


@server.tool
def was_cancelled() -> bool:
    """Tells once whether a wait was cancelled."""
    seen = bool(cancelled)
    cancelled.clear()
    return seen


@server.resource("memo://greeting", mime_type="text/plain")
def greeting() -> str:
    """A greeting."""
    return "hello from fast"


@server.resource("memo://note/{name}", mime_type="text/plain")
def note(name: str) -> str:
    """A note by its name."""
    return f"note {name}"


@server.prompt
def greet(name: str) -> str:
    """Greets somebody."""
    return f"Please greet {name}."


if __name__ == "__main__":
    port = port_argument(__doc__).port
    serve(server.http_app(path="/mcp", event_store=Events(), retry_interval=50), port)
