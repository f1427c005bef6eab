"""A stand-in of the Hub's HTTP interface on loopback: repositories, LFS uploads and commits, kept in memory."""

import base64
import json
import threading
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_onlyForTheStandIn"  # noqa: S105 - of nobody


class StandInHub(ThreadingHTTPServer):
    """Takes what `huggingface_hub` sends to create a repository and to upload a folder."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.blobs, self.committed = set(), {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, lines):
        for line in lines:
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.committed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.committed[value["path"]] = self.blobs[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self._answer({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": [self._upload(each) for each in json.loads(body)["objects"]]})
        elif "/commit/" in self.path:
            self.server.commit(body.splitlines())
            self._answer({"commitUrl": f"{self.server.url}/ORG/NAME/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._answer({"error": f"nothing at {self.path}"}, 404)

    def do_GET(self):
        self._answer({"error": "Invalid username or password."}, 401)

    def do_PUT(self):
        content = self._body()
        self.server.blobs[sha256(content).hexdigest()] = content
        self._answer({})

    def log_message(self, *_):
        pass

    def _create(self, asked):
        name = f"{asked.get('organization')}/{asked['name']}"
        self.server.repositories.add(name)
        self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def _upload(self, asked):
        action = {"href": f"{self.server.url}/blob/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": action}}

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, document, status=200):
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _mode(path):
    large = path.endswith((".safetensors", ".png"))
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}


@contextmanager
def stand_in_hub():
    """The stand-in, served by a thread within."""
    with StandInHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
