"""Show the page in a browser of this computer, until it is stopped."""

import os
import secrets
import socket
from collections.abc import Callable
from contextlib import closing

from privgen.errors import PrivgenError
from privgen.hub import Placement
from privgen.protection.protection import Protection
from privgen.watermark.networks import Networks
from privgen.webpage.desk import Desk


HOST = "127.0.0.1"
PORT = 7860

LARGEST_UPLOAD = 256 * 2**20
"""Bytes of a file that may be dropped: a photograph of 24 megapixels as TIFF of 16 bits has 144 MB."""

OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables that are read when Gradio is imported: no telemetry, and no question for newer versions."""


def serve(
    model: str = "mini", placement: Placement | None = None, *, port: int = PORT, ready: Callable[[str], None]
) -> None:
    """Show the page on this computer until the process is interrupted; then delete all its pictures.

    Args:
        model: whose networks write and read marks.
        placement: where they run.
        port: of the address; 0 takes any that is free.
        ready: called with the address of the page, which holds a secret, when the page can be opened.

    Raises:
        PrivgenError: Gradio is missing, or the port is taken.
    """
    desk = Desk()
    try:
        os.environ |= {**OFFLINE, "GRADIO_TEMP_DIR": str(desk.folder)}
        with closing(_listen(port)) as listener:
            _serve(desk, listener, Networks(model, placement or Placement()), ready)
    finally:
        desk.close()


def _serve(desk: Desk, listener: socket.socket, networks: Networks, ready: Callable[[str], None]) -> None:
    try:
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from privgen.webpage.page import build_page, stylesheet
        from privgen.webpage.tabs.bench import Bench
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "uvicorn", "fastapi"):
            raise
        raise PrivgenError("The page needs Gradio: pip install 'privgen[app]'.") from error
    from privgen.webpage.gate import Gate

    page = build_page(Bench(desk, networks, Protection.from_pretrained(device=networks.placement.device)))
    page.has_launched = True  # else Gradio does not check that the files it is asked for were uploaded
    port = listener.getsockname()[1]
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing to fetch
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(primary_hue="indigo", **fonts).set(block_info_text_color="*neutral_500"),
        css=stylesheet(),
    )
    secret = secrets.token_urlsafe(24)
    gated = Gate(app, secret, port)
    config = uvicorn.Config(gated, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    ready(f"http://{HOST}:{port}/?secret={secret}")  # the socket listens, so a browser that is early waits
    uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    """A socket that only this computer can reach."""
    listener = socket.socket()
    if os.name == "posix":  # elsewhere it would let other programs take the port, too
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise PrivgenError(f"Port {port} cannot be used: {error.strerror}; choose another one with --port.") from error
    return listener
