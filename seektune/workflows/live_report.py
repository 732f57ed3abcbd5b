"""Serves the report of a run that continues, to browsers on this machine."""

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from seektune.io.console import say
from seektune.io.run_files import EVALUATIONS, METRICS, REPORT_TEXT, SAMPLES, VALIDATION
from seektune.serve.hosts import LOOPBACK_NAMES
from seektune.train.report import live_report
from seektune.train.report_text import read_texts

ADDRESS = "127.0.0.1"
SOURCES = (METRICS, VALIDATION, EVALUATIONS, SAMPLES, REPORT_TEXT)
"""Files that change the report."""
OTHER_HOST = "Invalid host header: this server does not answer to that name"
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class LiveReport:
    """The page of a run folder; it is made again only when a file changed."""

    def __init__(self, folder: Path, refresh: int):
        self._folder = folder
        self._refresh = refresh
        self._lock = Lock()
        self._state: object = None
        self._page = ""

    def page(self) -> str:
        """The page as the files are now.

        Raises:
            ValueError, OSError: a file of the run folder cannot be read.
        """
        with self._lock:
            state = [_size_and_time(self._folder / name) for name in SOURCES]
            if state != self._state:
                self._page = live_report(self._folder, read_texts(self._folder), self._refresh)
                self._state = state
            return self._page


def _size_and_time(path: Path) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def make_server(report: LiveReport, port: int) -> ThreadingHTTPServer:
    """A server bound to a port of the loopback address; 0 is any.

    Raises:
        OSError: the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers `GET /`."""

        def do_GET(self) -> None:
            """The page, if the request is for this host."""
            host = self.headers.get("Host", "").rpartition(":")
            if (host[0] or host[2]) not in LOOPBACK_NAMES:
                return self._answer(HTTPStatus.BAD_REQUEST, OTHER_HOST)
            if self.path != "/":
                return self._answer(HTTPStatus.NOT_FOUND, "There is only the report, at /")
            try:
                text = report.page()
            except (ValueError, OSError) as error:
                return self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return self._answer(HTTPStatus.OK, text)

        def _answer(self, status: HTTPStatus, text: str) -> None:
            content = text.encode()
            kind = {} if status == HTTPStatus.OK else {"Content-Type": "text/plain; charset=utf-8"}
            self.send_response(status)
            for name, value in {**HEADERS, **kind, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not printed."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise OSError(f"cannot listen on {ADDRESS}:{port} ({error.strerror}); choose another --port") from None


def serve_report(report: LiveReport, port: int) -> None:
    """Serve until Ctrl-C.

    Raises:
        OSError: the port is in use.
    """
    with make_server(report, port) as server:
        say(f"report: http://{ADDRESS}:{server.server_port}/ (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
