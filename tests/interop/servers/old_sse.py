"""FastMCP of the Python SDK 1.2, which knows HTTP+SSE alone: stream at /sse, messages at /messages/.

It handles one request of a session at a time and knows neither cancellation nor elicitation, so those tools are not here.
"""

import anyio
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.sse import SseServerTransport
from mcp.types import SamplingMessage, TextContent
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from listen import port_argument, serve

server = FastMCP("old")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
async def slow_count(n: int, ctx: Context) -> str:
    """Counts to n and reports each step."""
    for step in range(1, n + 1):
        await anyio.sleep(0.02)
        await ctx.report_progress(step, n)
    return f"counted to {n}"


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("this tool always fails")


@server.tool()
async def sample(prompt: str, ctx: Context) -> str:
    """Asks the client's model."""
    question = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    answer = await ctx.request_context.session.create_message([question], max_tokens=50)
    return f"{answer.model}: {answer.content.text}"


@server.resource("memo://greeting", mime_type="text/plain")
def greeting() -> str:
    """A greeting."""
    return "hello from old"


@server.resource("memo://note/{name}", mime_type="text/plain")
def note(name: str) -> str:
    """A note by its name."""
    return f"note {name}"


@server.prompt()
def greet(name: str) -> str:
    """Greets somebody."""
    return f"Please greet {name}."


transport = SseServerTransport("/messages/")


class Stream:
    """An ASGI app rather than an endpoint: the transport answers the request itself, as this SDK's own run_sse does."""

    async def __call__(self, scope, receive, send):
        async with transport.connect_sse(scope, receive, send) as (incoming, outgoing):
            await server._mcp_server.run(incoming, outgoing, server._mcp_server.create_initialization_options())


if __name__ == "__main__":
    port = port_argument(__doc__).port
    app = Starlette(routes=[Route("/sse", Stream()), Mount("/messages/", app=transport.handle_post_message)])
    serve(app, port)
