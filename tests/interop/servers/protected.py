"""A protected server (RFC 9728) on FastMCP 4 at /mcp: it verifies its issuer's JWTs and says what it saw.

`--issuer URL` is whose tokens it takes, by the keys that the issuer's metadata names; they must be for this server's own URL, or for
`--audience`, and have `--scope`. Every name of `--tools` is the same tool, which answers what it saw. For tests, under /control/:

GET  /control/seen    how many requests came and how many got in, and every call: its token's claims, its scopes, its headers
POST /control/expire  takes no token any more that it has seen so far
POST /control/trust   {issuer, jwks, algorithm}: takes another issuer's tokens from now on
"""

import argparse
import hashlib
import json
import socket
import urllib.request

import uvicorn
from fastmcp import FastMCP
from fastmcp.server.auth import RemoteAuthProvider
from fastmcp.server.auth.providers.jwt import JWTVerifier
from fastmcp.server.dependencies import get_access_token, get_http_headers
from starlette.requests import Request
from starlette.responses import JSONResponse

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
parser.add_argument("--issuer", required=True)
parser.add_argument("--audience")
parser.add_argument("--scope", default="mcp.use", help="what every token must have; empty asks for none")
parser.add_argument("--tools", default="whoami")
options = parser.parse_args()

sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", options.port))
sock.listen(512)
here = f"http://127.0.0.1:{sock.getsockname()[1]}"


def keys_of(issuer: str) -> str:
    with urllib.request.urlopen(f"{issuer}/.well-known/oauth-authorization-server", timeout=10) as answer:
        return json.load(answer)["jwks_uri"]


class Verifier(JWTVerifier):
    """The library's own verification, with a list of tokens that a test had expire."""

    def __init__(self, issuer: str, jwks: str, audience: str, scopes: list[str]) -> None:
        super().__init__(
            issuer=issuer, jwks_uri=jwks, audience=audience, required_scopes=scopes, jwks_refresh_interval=0
        )
        self.seen: set[str] = set()
        self.expired: set[str] = set()
        self.requests = {"taken": 0, "refused": 0}

    async def verify_token(self, token):
        mark = hashlib.sha256(token.encode()).hexdigest()
        self.seen.add(mark)
        found = None if mark in self.expired else await super().verify_token(token)
        self.requests["refused" if found is None else "taken"] += 1
        return found


scopes = options.scope.split()
verifier = Verifier(options.issuer, keys_of(options.issuer), options.audience or f"{here}/mcp", scopes)
auth = RemoteAuthProvider(verifier, authorization_servers=[options.issuer], base_url=here, scopes_supported=scopes)
server = FastMCP("protected", version="1.0.0", auth=auth)
calls: list[dict] = []


def whoami() -> dict:
    """Says whose token this call came with."""
    token = get_access_token()
    claims = {name: value for name, value in token.claims.items() if name != "jti"}
    seen = {
        "claims": claims,
        "client": token.client_id,
        "scopes": token.scopes,
        "mark": hashlib.sha256(token.token.encode()).hexdigest()[:16],
        "headers": {name: value for name, value in get_http_headers(include_all=True).items() if name != "authorization"},
    }
    calls.append(seen)
    return seen


for name in options.tools.split():
    server.tool(whoami, name=name)


@server.custom_route("/control/seen", methods=["GET"])
async def seen(_: Request) -> JSONResponse:
    return JSONResponse({"requests": verifier.requests, "tokens": len(verifier.seen), "calls": calls})


@server.custom_route("/control/expire", methods=["POST"])
async def expire(_: Request) -> JSONResponse:
    verifier.expired |= verifier.seen
    return JSONResponse({"expired": len(verifier.expired)})


@server.custom_route("/control/trust", methods=["POST"])
async def trust(request: Request) -> JSONResponse:
    asked = await request.json()
    verifier.issuer, verifier.jwks_uri = asked["issuer"], asked["jwks"]
    verifier.algorithm = asked.get("algorithm", "RS256")
    return JSONResponse({})


if __name__ == "__main__":
    print(f"PORT {sock.getsockname()[1]}", flush=True)
    app = server.http_app(path="/mcp")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[sock])
