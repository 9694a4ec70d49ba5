"""What every Python client does, and how its outcome is written down.

A client hands over an `Sdk`: the same few verbs over either SDK, each answering the wire's own JSON. The outcome is one JSON object,
step by step in order, holding only what must be equal with and without a gate between: no ids, times or ports.
"""

import argparse
import asyncio
import json
import re
import sys
import traceback

import anyio

STEP_SECONDS = 10
ABSENT = "not offered"


def arguments(description: str, *, modes: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("url", help="with --transport stdio the command, as a JSON array")
    parser.add_argument("--token", help="bearer token sent with every request")
    parser.add_argument("--transport", choices=("streamable", "sse", "stdio"), default="streamable")
    parser.add_argument("--profile", choices=("ours", "everything", "time"), default="ours")
    parser.add_argument("--expect-denied", metavar="TOOL", help="only: call TOOL, then something else on the same session")
    parser.add_argument("--trace", action="store_true", help="each HTTP exchange as a JSON line on stderr")
    if modes:
        parser.add_argument("--mode", choices=modes, default=modes[0])
    return parser.parse_args()


class Wire:
    """What was seen of HTTP: the statuses that the SDKs keep to themselves."""

    def __init__(self, trace: bool) -> None:
        self.first: dict[str, int] = {}
        self.trace = trace

    async def response(self, response) -> None:
        request = response.request
        self.first.setdefault(request.method, response.status_code)
        if self.trace:
            line = {
                "method": request.method,
                "path": request.url.raw_path.decode(),
                "request": dict(request.headers),
                "status": response.status_code,
                "response": dict(response.headers),
            }
            print(json.dumps(line), file=sys.stderr, flush=True)


class Inbox:
    """Notifications outside calls, by method."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    async def wait_for(self, *methods: str) -> list[str]:
        with anyio.move_on_after(5):
            while not self.methods.issuperset(methods):
                await anyio.sleep(0.02)
        return sorted(self.methods.intersection(methods))


class Progress:
    def __init__(self) -> None:
        self.count = 0
        self.started = anyio.Event()

    async def __call__(self, progress, total=None, message=None) -> None:
        self.count += 1
        self.started.set()


def clean(text: str) -> str:
    text = re.sub(r"(127\.0\.0\.1|localhost|\[::1\]):\d+", r"\1:PORT", text)
    text = re.sub(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT", "DATE-T", text)
    return re.sub(r"created at [^\"]*", "created at TIME", text)


def failure(error: BaseException) -> dict:
    if isinstance(error, BaseExceptionGroup):
        return failure(error.exceptions[0])
    if isinstance(error, TimeoutError):
        return {"error": "timeout"}
    inner = getattr(error, "error", None)
    if hasattr(inner, "code"):
        return {"error": {"code": inner.code, "message": clean(inner.message)}}
    return {"error": f"{type(error).__name__}: {clean(str(error)).splitlines()[0] if str(error) else ''}"}


def content(result: dict) -> dict:
    texts = [clean(part.get("text", part["type"])) for part in result.get("content", [])]
    outcome = {"texts": texts}
    if result.get("isError"):
        outcome["is_error"] = True
    return outcome


class Scenario:
    def __init__(self, options: argparse.Namespace, wire: Wire) -> None:
        self.options = options
        self.wire = wire
        self.steps: dict[str, object] = {}
        self.tools: list[str] = []

    async def step(self, name: str, run) -> None:
        try:
            with anyio.fail_after(STEP_SECONDS):
                self.steps[name] = await run()
        except Exception as error:
            if self.options.trace:
                traceback.print_exc()
            self.steps[name] = failure(error)

    async def listed(self, sdk, kind: str, key: str, field: str) -> list[str]:
        names, cursor = [], None
        for _ in range(100):
            page = await sdk.list(kind, cursor)
            names += [item[field] for item in page[key]]
            cursor = page.get("nextCursor")
            if not cursor:
                return names
        raise RuntimeError("a list without end")

    async def call(self, sdk, name: str, args: dict) -> object:
        if name not in self.tools:
            return ABSENT
        return content(await sdk.call(name, args))

    async def call_with_progress(self, sdk, name: str, args: dict) -> object:
        if name not in self.tools:
            return ABSENT
        progress = Progress()
        outcome = content(await sdk.call(name, args, progress))
        # A notification is handed over by another task than the result.
        await anyio.sleep(0.05)
        return outcome | {"progress": progress.count}

    async def cancel(self, sdk, name: str, args: dict) -> object:
        if name not in self.tools:
            return ABSENT
        outcome: dict[str, object] = {}
        progress = Progress()
        settled = anyio.Event()

        async def call() -> None:
            try:
                outcome["caller"] = content(await sdk.call(name, args, progress))
            except Exception as error:
                outcome["caller"] = failure(error)
            except asyncio.CancelledError:
                outcome["caller"] = "cancelled"
                raise
            finally:
                settled.set()

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            with anyio.fail_after(5):
                await progress.started.wait()
            await sdk.cancel(group, settled)
        if "was_cancelled" in self.tools:
            for _ in range(50):
                outcome["server"] = content(await sdk.call("was_cancelled", {}))["texts"]
                if outcome["server"] == ["true"]:
                    break
                await anyio.sleep(0.1)
        return outcome

    async def refused(self, sdk) -> None:
        denied = self.options.expect_denied
        args = {"prompt": "x", "message": "x", "n": 1, "a": 1, "b": 2, "ids": []}

        async def discover() -> dict:
            self.tools = await self.listed(sdk, "tools", "tools", "name")
            return {"listed": denied in self.tools}

        async def next_call() -> object:
            if "add" in self.tools:
                return await self.call(sdk, "add", {"a": 2, "b": 3})
            return await self.call(sdk, "echo", {"message": "hello"})

        async def call_denied() -> object:
            return content(await sdk.call(denied, args))

        await self.step("tools", discover)
        await self.step("denied", call_denied)
        await self.step("next", next_call)

    async def run(self, sdk) -> None:
        if self.options.expect_denied:
            return await self.refused(sdk)

        async def tools() -> list[str]:
            self.tools = await self.listed(sdk, "tools", "tools", "name")
            return self.tools

        async def read(uri: str) -> list[str]:
            return [clean(item.get("text", "blob"))[:200] for item in (await sdk.read(uri))["contents"]]

        async def prompt(name: str, args: dict) -> list[str]:
            return [message["content"].get("text", "") for message in (await sdk.prompt(name, args))["messages"]]

        async def unknown_tool() -> dict:
            return content(await sdk.call("no_such_tool", {}))

        everything = self.options.profile == "everything"
        await self.step("tools", tools)
        await self.step("resources", lambda: self.listed(sdk, "resources", "resources", "uri"))
        await self.step("templates", lambda: self.listed(sdk, "templates", "resourceTemplates", "uriTemplate"))
        await self.step("prompts", lambda: self.listed(sdk, "prompts", "prompts", "name"))
        if everything:
            await self.step("call", lambda: self.call(sdk, "echo", {"message": "hello"}))
            await self.step("add", lambda: self.call(sdk, "get-sum", {"a": 2, "b": 3}))
            await self.step(
                "progress",
                lambda: self.call_with_progress(sdk, "trigger-long-running-operation", {"duration": 0.5, "steps": 5}),
            )
            await self.step("bad_arguments", lambda: self.call(sdk, "get-sum", {"a": "two"}))
            await self.step("image", lambda: self.call(sdk, "get-tiny-image", {}))
            await self.step("read", lambda: read("demo://resource/static/document/features.md"))
            await self.step("read_template", lambda: read("demo://resource/dynamic/text/7"))
            await self.step("prompt", lambda: prompt("args-prompt", {"city": "Oslo"}))
            await self.step("elicitation", lambda: self.call(sdk, "trigger-elicitation-request", {}))
            await self.step("sampling", lambda: self.call(sdk, "trigger-sampling-request", {"prompt": "hi"}))
            await self.step("roots", lambda: self.call(sdk, "get-roots-list", {}))
            await self.step(
                "cancel", lambda: self.cancel(sdk, "trigger-long-running-operation", {"duration": 4, "steps": 40})
            )
            await self.step("after_cancel", lambda: self.call(sdk, "echo", {"message": "again"}))
        elif self.options.profile == "time":
            noon = {"time": "12:00", "source_timezone": "Europe/Oslo", "target_timezone": "Asia/Tokyo"}
            await self.step("call", lambda: self.call(sdk, "convert_time", noon))
            await self.step("fail", lambda: self.call(sdk, "convert_time", noon | {"source_timezone": "Nowhere"}))
            await self.step("bad_arguments", lambda: self.call(sdk, "convert_time", {}))
        else:
            await self.step("call", lambda: self.call(sdk, "add", {"a": 2, "b": 3}))
            await self.step("progress", lambda: self.call_with_progress(sdk, "slow_count", {"n": 5}))
            await self.step("fail", lambda: self.call(sdk, "fail", {}))
            await self.step("bad_arguments", lambda: self.call(sdk, "add", {"a": "two"}))
            await self.step("read", lambda: read("memo://greeting"))
            await self.step("read_template", lambda: read("memo://note/milk"))
            await self.step("prompt", lambda: prompt("greet", {"name": "Ada"}))
            await self.step("elicitation", lambda: self.call(sdk, "elicit_name", {}))
            await self.step("sampling", lambda: self.call(sdk, "sample", {"prompt": "hi"}))
            await self.step("changes", lambda: sdk.changes() if "touch" in self.tools else self.nothing())
            await self.step("resume", lambda: self.call_with_progress(sdk, "resumable", {"n": 6}))
            await self.step("cancel", lambda: self.cancel(sdk, "wait_forever", {}))
            await self.step("after_cancel", lambda: self.call(sdk, "add", {"a": 4, "b": 5}))
        await self.step("unknown_tool", unknown_tool)
        await self.step("unknown_resource", lambda: read("memo://nowhere"))

    async def nothing(self) -> str:
        return ABSENT

    async def main(self, session) -> None:
        """Runs against `session`, an async context manager that yields (what connecting told, Sdk)."""
        try:
            with anyio.fail_after(120):
                async with session as (told, sdk):
                    self.steps["connect"] = told
                    await self.run(sdk)
        except BaseException as error:
            if self.options.trace:
                traceback.print_exc()
            # Either connecting failed or the SDK tore the session down in the middle of a step.
            self.steps["lost" if "connect" in self.steps else "connect"] = failure(error)
        self.steps["end"] = {"stream": self.wire.first.get("GET"), "delete": self.wire.first.get("DELETE")}
        print(json.dumps(self.steps, ensure_ascii=False))


def start(options: argparse.Namespace, session) -> None:
    wire = Wire(options.trace)
    anyio.run(Scenario(options, wire).main, session(options, wire))
