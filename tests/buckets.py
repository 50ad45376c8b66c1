"""A bucket of Google Cloud Storage on this machine: the part of its JSON API that gcsfs, google-cloud-storage
and tensorstore use, in memory.
"""

import base64
import contextlib
import itertools
import json
import os
import re
import sys
import threading
from email.parser import BytesParser
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

NUMBERS = itertools.count()
TIME = "2026-01-01T00:{:02d}:{:02d}.000Z"


class Bucket:
    """The objects of one bucket, whose folder is gs://NAME. read_only: every write is answered with 403, as
    without permission.
    """

    def __init__(self, name: str):
        self.name, self.folder, self.read_only = name, f"gs://{name}", False
        # Name of an object -> (its generation, its bytes)
        self.objects, self.written = {}, 0
        self.lock = threading.Lock()
        self.uploads = {}

    def put(self, name: str, data: bytes, condition: str | None = None):
        """Write an object: -> its metadata; None where its generation is not `condition`."""
        with self.lock:
            if condition is not None and self.objects.get(name, (0,))[0] != int(condition):
                return None
            self.written += 1
            self.objects[name] = self.written, data
            return self.about(name)

    def about(self, name: str):
        """The metadata of an object that is there."""
        generation, data = self.objects[name]
        time = TIME.format(generation // 60, generation % 60)
        return {
            "kind": "storage#object",
            "bucket": self.name,
            "name": name,
            "id": f"{self.name}/{name}/{generation}",
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(data)),
            "md5Hash": base64.b64encode(md5(data).digest()).decode(),
            "timeCreated": time,
            "updated": time,
            "contentType": "application/octet-stream",
        }

    def listed(self, query: dict):
        """The answer to a list request: the items and prefixes; everything on one page."""
        start, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], {}
        with self.lock:
            names = sorted(name for name in self.objects if name.startswith(start))
            for name in names:
                rest = name[len(start) :]
                first, end = query.get("startOffset", ""), query.get("endOffset")
                if name < first or end and name >= end:
                    continue
                if delimiter and delimiter in rest:
                    prefixes[start + rest.partition(delimiter)[0] + delimiter] = None
                else:
                    items.append(self.about(name))
        return {"kind": "storage#objects", "items": items, "prefixes": [*prefixes]}


class Handler(BaseHTTPRequestHandler):
    """Answers a request. `bucket` is set by served_bucket."""

    bucket: Bucket
    protocol_version = "HTTP/1.1"
    # The last bytes of an answer would wait for an acknowledgement of the first
    disable_nagle_algorithm = True

    def do_GET(self):
        self._of_object(self._get, self._list)

    def do_HEAD(self):
        self.do_GET()

    def do_DELETE(self):
        self._of_object(self._delete, None)

    def do_POST(self):
        self._of_object(self._post, self._upload)

    def do_PUT(self):
        self._of_object(None, self._resume)

    def log_message(self, *_):
        pass

    def _of_object(self, of_object, of_all):
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if self.headers.get("Transfer-Encoding") else self.rfile.read(length)
        found = re.fullmatch(r"(?:/\w+)?/storage/v1/b/([^/]+)(/o)?(?:/(.+))?", parts.path)
        writes = self.command in ("POST", "PUT", "DELETE")
        if not found or unquote(found[1]) != self.bucket.name:
            self._answer(404, {"error": {"code": 404, "message": "no such bucket"}})
        elif writes and self.bucket.read_only:
            message = "the caller does not have storage.objects.create access"
            self._answer(403, {"error": {"code": 403, "message": message}})
        elif not found[2]:
            self._answer(200, {"kind": "storage#bucket", "name": self.bucket.name, "id": found[1]})
        elif found[3]:
            of_object(found[3], query, body)
        else:
            of_all(query, body)

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _get(self, name, query, _):
        name = unquote(name)
        with self.bucket.lock:
            found = self.bucket.objects.get(name)
            about = self.bucket.about(name) if found else None
        if found is None:
            self._answer(404, {"error": {"code": 404, "message": f"no such object: {name}"}})
        elif query.get("alt") != "media":
            self._answer(200, about)
        elif query.get("ifGenerationNotMatch") == about["generation"]:
            self._answer(304)
        else:
            self._media(found[1], about["generation"])

    def _media(self, data, generation):
        status, headers = 200, {"x-goog-generation": generation, "ETag": generation}
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = span.groups()
            start = int(first) if first else max(len(data) - int(last), 0)
            end = min(int(last) + 1, len(data)) if first and last else len(data)
            if start >= len(data):
                self._answer(416, {"error": {"code": 416, "message": "beyond the end"}})
                return
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            status, data = 206, data[start:end]
        self._answer(status, data, **headers)

    def _list(self, query, _):
        self._answer(200, self.bucket.listed(query))

    def _delete(self, name, query, _):
        with self.bucket.lock:
            there = self.bucket.objects.pop(unquote(name), None)
        self._answer(204 if there else 404, None if there else {"error": {"code": 404}})

    def _post(self, name, query, _):
        source, _, target = name.partition("/rewriteTo/b/")
        with self.bucket.lock:
            _, data = self.bucket.objects[unquote(source)]
        about = self.bucket.put(unquote(target.partition("/o/")[2]), data)
        self._answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": about})

    def _upload(self, query, body):
        if "upload_id" in query:
            self._resume(query, body)
            return
        name, data = query.get("name"), body
        if query.get("uploadType") == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, data = BytesParser().parsebytes(head + body).get_payload()
            name, data = json.loads(about.get_payload())["name"], _payload(body)
        if query.get("uploadType") == "resumable":
            self.bucket.uploads[str(len(self.bucket.uploads))] = name, bytearray()
            host, last = self.headers["Host"], len(self.bucket.uploads) - 1
            place = f"http://{host}/upload/storage/v1/b/{self.bucket.name}/o?upload_id={last}"
            self._answer(200, {}, Location=place)
            return
        about = self.bucket.put(name, data, query.get("ifGenerationMatch"))
        self._answer(200 if about else 412, about or {"error": {"code": 412}})

    def _resume(self, query, body):
        name, data = self.bucket.uploads[query["upload_id"]]
        data += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            self._answer(308, None, Range=f"bytes=0-{len(data) - 1}")
        else:
            self._answer(200, self.bucket.put(name, bytes(data)))

    def _answer(self, status, content=None, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        data = b"" if content is None else data
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """Says nothing of a client that no longer waits: gcsfs asks two questions and drops the later answer."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _payload(body):
    """The bytes of the second part, which email would decode as text."""
    boundary = body[: body.index(b"\n")].rstrip(b"\r")
    part = body.split(boundary)[2]
    return part[re.search(rb"\r?\n\r?\n", part).end() :].removesuffix(b"\n").removesuffix(b"\r")


@contextlib.contextmanager
def served_bucket():
    """Serve a Bucket, which is there for this process and those that it starts: yields the Bucket."""
    # Libraries remember what they know of a name
    bucket = Bucket(f"bucket-{next(NUMBERS)}")
    server = Server(("127.0.0.1", 0), type("Own", (Handler,), {"bucket": bucket}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        # No account, and no question to Google what kind of bucket it is
        "FSSPEC_GCS_TOKEN": "anon",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_CLOUD_PROJECT": "none",
    }
    try:
        with mock.patch.dict(os.environ, environment):
            yield bucket
    finally:
        server.shutdown()
        server.server_close()
