"""A bucket on this machine: as much of Google Cloud Storage's JSON protocol as tensorstore uses."""

import contextlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator


@contextlib.contextmanager
def serve(objects: dict[str, bytes]) -> Iterator[str]:
  """Serves `{"BUCKET/NAME": content}`, which uploads add to; yields the address."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(objects))
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_address[1]}"
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def _handler(objects: dict[str, bytes]) -> type[http.server.BaseHTTPRequestHandler]:

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet an answer: else each waits for an acknowledgement.
    wbufsize = -1

    def do_GET(self):
      path, query = self._parse()
      if path[-1] == "o":
        bucket, start, end = path[-2], query.get("startOffset", ""), query.get("endOffset")
        names = [key.partition("/")[2] for key in sorted(objects) if key.startswith(bucket + "/")]
        names = [name for name in names if start <= name and (end is None or name < end)]
        self._answer(200, json.dumps({"items": [{"name": name} for name in names]}).encode())
        return
      content = objects.get(f"{path[-3]}/{path[-1]}")
      if content is None:
        self._answer(404, b"{}")
        return
      headers = {"x-goog-generation": "1"}
      if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first:last + 1], headers)
        return
      self._answer(200, content, headers)

    def do_POST(self):
      path, query = self._parse()
      content = self.rfile.read(int(self.headers["Content-Length"]))
      objects[f"{path[-2]}/{query['name']}"] = content
      self._answer(200, json.dumps({"name": query["name"], "generation": "2"}).encode())

    def do_DELETE(self):
      path, _ = self._parse()
      known = objects.pop(f"{path[-3]}/{path[-1]}", None) is not None
      self._answer(204 if known else 404, b"")

    def log_message(self, *args):
      pass

    def _parse(self):
      address = urllib.parse.urlsplit(self.path)
      path = [urllib.parse.unquote(part) for part in address.path.split("/")]
      return path, dict(urllib.parse.parse_qsl(address.query))

    def _answer(self, status, content, headers=None):
      self.send_response(status)
      for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        self.send_header(name, value)
      self.end_headers()
      self.wfile.write(content)
      self.wfile.flush()

  return Handler
