"""A web server of the world outside, which tells whoever asks by which address it sees him.

Run as a program of its own, in the network namespace of the network outside: `python -m kumulus_lab.worldserver --port P`.
Listens at all addresses there, of both families.
"""

from __future__ import annotations

import argparse
import http
import http.server
import ipaddress
import socket


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET with `you are ADDRESS`."""

    protocol_version = "HTTP/1.1"
    server_version = "kumulus-lab"
    timeout = 10

    def do_GET(self) -> None:
        """Who asks."""
        body = f"you are {seen(self.client_address[0])}\n".encode()
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Guests ask all the time: the log would grow without an end."""


def seen(address: str) -> str:
    """An address as people write it: one of IPv4 arrives as ::ffff:192.0.2.1."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str((parsed.ipv4_mapped if parsed.version == 6 else None) or parsed)


class Server(http.server.ThreadingHTTPServer):
    """Listens at :: for both families (RFC 3493, 5.3)."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        """Take both families, whatever the system's default is."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description="Tell whoever asks by which address he is seen.")
    parser.add_argument("--port", type=int, required=True)
    with Server(("::", parser.parse_args().port), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
