"""The whole OAuth dance of a Python SDK client against URL, without a browser; runs on 1.x and 2.x.

Prints one JSON object as oauth.mjs does: every HTTP exchange in order, what was asked for, what the token says, what the call
answered.
"""

import argparse
import base64
import json
import re
from importlib.metadata import version
from urllib.parse import parse_qs, urlsplit

import anyio
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata

NEW = int(version("mcp").split(".")[0]) >= 2
if NEW:
    import httpx2 as http
    from mcp.client import Client
    from mcp.shared.auth import AuthorizationCodeResult
else:
    import httpx as http
    from mcp import ClientSession

REDIRECT = "http://127.0.0.1:9/callback"


class Storage:
    tokens = None
    client = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client):
        self.client = client


def hidden(text: str) -> str:
    return re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:PORT", text)


async def authorize(start: str) -> dict[str, str]:
    """Follows the redirects as a browser would, with its cookies, up to the client's own redirect address."""
    async with http.AsyncClient() as browser:
        target = start
        for _ in range(10):
            if target.startswith(REDIRECT):
                return {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
            response = await browser.get(target)
            if not response.has_redirect_location:
                raise RuntimeError(f"the issuer answered {response.status_code}: {response.text[:300]}")
            target = str(response.next_request.url)
    raise RuntimeError("too many redirects")


async def call(client) -> tuple[list[str], list[str]]:
    tools = [tool.name for tool in (await client.list_tools()).tools]
    name = next(known for known in ("add", "echo") if known in tools)
    result = await client.call_tool(name, {"a": 2, "b": 3, "message": "hello"})
    return tools, [part.text for part in result.content]


async def main(url: str) -> int:
    report: dict = {}
    exchanges: list[dict] = []
    storage = Storage()
    callback: dict[str, str] = {}

    async def seen(response) -> None:
        target = response.request.url
        ours = target.netloc.decode() == urlsplit(url).netloc
        exchange = {
            "to": "gate" if ours else "issuer",
            "method": response.request.method,
            "path": target.path,
            "status": response.status_code,
        }
        if response.status_code == 401:
            exchange["challenge"] = hidden(response.headers.get("www-authenticate", ""))
        exchanges.append(exchange)

    async def redirect(target: str) -> None:
        query = parse_qs(urlsplit(target).query)
        names = ("scope", "resource", "code_challenge_method")
        report["asked"] = {name: hidden(query[name][0]) if name in query else None for name in names}
        callback.update(await authorize(target))

    async def back():
        if NEW:
            return AuthorizationCodeResult(**{key: callback.get(key) for key in ("code", "state", "iss")})
        return callback["code"], callback.get("state")

    class Watched(OAuthClientProvider):
        """Counts the SDK's own requests too, which no event hook of the HTTP client sees."""

        async def async_auth_flow(self, request):
            flow = super().async_auth_flow(request)
            answer = None
            try:
                while True:
                    answer = yield (await flow.asend(answer))
                    await seen(answer)
            except StopAsyncIteration:
                return

    metadata = OAuthClientMetadata(
        client_name="interop",
        redirect_uris=[REDIRECT],
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        token_endpoint_auth_method="none",
    )
    auth = Watched(url, metadata, storage, redirect_handler=redirect, callback_handler=back)
    try:
        with anyio.fail_after(30):
            async with http.AsyncClient(auth=auth, timeout=20) as web:
                if NEW:
                    async with Client(streamable_http_client(url, http_client=web)) as client:
                        report["tools"], report["call"] = await call(client)
                else:
                    async with streamable_http_client(url, http_client=web) as (read, write, _):
                        async with ClientSession(read, write) as client:
                            await client.initialize()
                            report["tools"], report["call"] = await call(client)
        part = storage.tokens.access_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        audience = claims["aud"] if isinstance(claims["aud"], str) else claims["aud"][0]
        report["token"] = {"aud": hidden(audience), "scope": claims["scope"], "sub": claims["sub"]}
    except BaseException as error:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        report["error"] = f"{type(error).__name__}: {hidden(str(error))}"
    report["exchanges"] = exchanges
    print(json.dumps(report))
    return 1 if "error" in report else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    raise SystemExit(anyio.run(main, parser.parse_args().url))
