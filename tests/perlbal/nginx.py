"""Debian's nginx with its own configuration, folder and port."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.perlbal.servers import START, ended, reserved_ports

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    keepalive_requests 1000000;
    {more}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        {server}
    }}
}}
"""
FILES = "root {tree}; location /put/ {{ dav_methods PUT; }}"
"""A file server that also accepts PUT below /put/."""


class Nginx:
    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port


@contextlib.contextmanager
def nginx(folder: Path, server: str, more: str = "") -> Iterator[Nginx]:
    """Run nginx in the foreground as one process, with this text in its server block."""
    folder.mkdir()
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with reserved_ports(["port"]) as ports:
        file = folder / "nginx.conf"
        file.write_text(
            CONFIGURATION.format(folder=folder, server=server, more=more, port=ports["port"])
        )
        with subprocess.Popen(
            [program, "-c", str(file), "-p", str(folder), "-e", str(folder / "error.log")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                limit = time.monotonic() + START
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", ports["port"])).close()
                        break
                    except ConnectionRefusedError:
                        over = ended(process, 0.02) or time.monotonic() > limit
                        assert not over, (folder / "error.log").read_text()
                yield Nginx(process, ports["port"])
            finally:
                process.kill()
