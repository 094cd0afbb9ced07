"""A W&B server for the tests: it takes what wandb's client really sends, and misbehaves on request.

    with Server() as server:
        ...  # a run with server.environment
        server.runs[wandb_id].history

It judges nothing. Of GraphQL it knows the operations that a run needs, and answers with the fields that wandb-core 0.31
reads. What a run streams are lines of files by number, as W&B's own tests take them (`wandb_backend_spy`): one that
comes again takes its place, and how many there are is what a client that goes on is told.
"""

import contextlib
import json
import re
import socket
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY, EVENTS, SUMMARY, OUTPUT = (
    "wandb-history.jsonl",
    "wandb-events.jsonl",
    "wandb-summary.json",
    "output.log",
)


@dataclass
class Run:
    """What arrived of one run."""

    # Of streamed files, by number.
    lines: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    files: dict[str, bytes] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    preempted: bool = False
    exit_code: int | None = None  # None: it has not ended

    @property
    def history(self) -> list[dict[str, Any]]:
        """Its rows, in order."""
        rows = self.lines[HISTORY]
        assert sorted(rows) == list(range(len(rows))), "rows are missing"
        return [json.loads(rows[number]) for number in sorted(rows)]

    def take(self, update: dict[str, Any]) -> None:
        """What the client streams."""
        for name, chunk in update.get("files", {}).items():
            self.lines[name].update(enumerate(chunk["content"], chunk["offset"]))
        self.preempted |= update.get("preempting", False)
        if update.get("complete"):
            self.exit_code = update["exitcode"]

    def state(self) -> dict[str, Any]:
        """What a client that goes on with it has to know."""
        count = {name: len(self.lines[name]) for name in (HISTORY, EVENTS, OUTPUT)}
        tail = {
            name: json.dumps([self.lines[name][count[name] - 1]] if count[name] else [])
            for name in count
        }
        return {
            "historyLineCount": count[HISTORY],
            "eventsLineCount": count[EVENTS],
            "logLineCount": count[OUTPUT],
            "historyTail": tail[HISTORY],
            "eventsTail": tail[EVENTS],
            "summaryMetrics": self.lines[SUMMARY].get(0, "{}"),
            "config": json.dumps(self.config),
            "wandbConfig": json.dumps({"t": 1} if self.config else {}),  # whether it has begun
            "displayName": self.name,
        }


class Server:
    """The server, on a port of its own, which it comes back to if it is stopped and started again.

    Attributes:
        runs: by id.
        artifacts: the committed ones, in order: what was asked for, and as "files" their contents.
        seen: what came, in order: operations of GraphQL, paths of all else.
        fault: what a request meets: None; a status; "hang", no answer until the fault is over; or "close", none at all.
        only: a pattern of those in `seen` that meet it.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = defaultdict(Run)
        self.artifacts: list[dict[str, Any]] = []
        self.begun: dict[str, dict[str, Any]] = {}  # artifacts by id
        self.seen: list[str] = []
        self.fault: int | str | None = None
        self.only = ""
        self.port = 0
        self.lock = threading.Lock()

    def start(self) -> None:
        """Listen."""
        self.connections: list[socket.socket] = []
        self.http = ThreadingHTTPServer(
            ("127.0.0.1", self.port), type("Connection", (Handler,), {"owner": self})
        )
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away, whatever is under way."""
        self.fault = self.fault if self.fault != "hang" else None
        self.http.shutdown()
        self.http.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send a run here."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": "k" * 40}

    def post(self, what: str, body: bytes) -> dict[str, Any]:
        """The answer to a request."""
        if what.startswith("/storage/"):
            _, _, owner, name = what.split("/", 3)
            (self.begun[owner]["files"] if owner in self.begun else self.runs[owner].files)[
                name
            ] = body
        elif what.endswith("/file_stream"):
            self.runs[what.split("/")[-2]].take(json.loads(body))
        elif not what.startswith("/"):
            asked = json.loads(body).get("variables", {})
            return {"data": self.graphql(what, asked | asked.get("input", {}))}
        return {}

    def graphql(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The data that an operation of GraphQL asks for; nothing if it is not known."""

        def upload(owner: str, name: str) -> dict[str, Any]:
            place = f"{self.address}/storage/{owner}/{name}"
            return {
                "id": name,
                "name": name,
                "uploadUrl": place,
                "uploadHeaders": [],
                "artifact": {"id": owner},
            }

        entity = {"id": "entity", "name": "me"}
        project = {"id": "project", "name": asked.get("project"), "entity": entity}
        match operation:
            case "Viewer":
                return {
                    "viewer": {"id": "me", "entity": "me", "username": "me", "teams": {"edges": []}}
                }
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                run = self.runs.get(asked["name"])
                bucket = {"id": asked["name"], "name": asked["name"]} | run.state() if run else None
                return {"model": project | {"bucket": bucket}}
            case "UpsertBucket":
                run = self.runs[asked["name"]]
                run.name = asked.get("displayName") or run.name
                run.config = json.loads(asked.get("config") or "null") or run.config
                bucket = {
                    "id": asked["name"],
                    "name": asked["name"],
                    "project": project,
                } | run.state()
                return {"upsertBucket": {"bucket": bucket, "inserted": not run.lines}}
            case "CreateRunFiles":
                files = [upload(asked["run"], name) for name in asked["files"]]
                return {
                    "createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}
                }
            case "CreateArtifact":
                same = [
                    artifact["id"]
                    for artifact in self.artifacts
                    if all(
                        artifact[key] == asked[key] for key in ("artifactCollectionName", "digest")
                    )
                ]
                number = same[0] if same else f"artifact-{len(self.begun)}"
                if not same:
                    self.begun[number] = asked | {"id": number, "files": {}}
                state = "COMMITTED" if same else "PENDING"
                artifact = {
                    "id": number,
                    "state": state,
                    "artifactSequence": {"latestArtifact": None},
                }
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                manifest = {"id": "manifest", "file": upload(asked["artifactID"], asked["name"])}
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                nodes = [
                    {"node": upload(file["artifactID"], file["name"])}
                    for file in asked["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": nodes}}}
            case "CommitArtifact":
                artifact = self.begun[asked["artifactID"]]
                self.artifacts.append(artifact)
                return {
                    "commitArtifact": {
                        "artifact": {"id": artifact["id"], "digest": artifact["digest"]}
                    }
                }
        return {"project": None, "entity": None}


class Handler(BaseHTTPRequestHandler):
    """One connection, and its requests."""

    protocol_version = "HTTP/1.1"
    owner: Server

    def handle(self) -> None:
        self.owner.connections.append(self.connection)
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        what = self.path
        if what == "/graphql":
            what = re.findall(r"(?:query|mutation) (\w+)", json.loads(body)["query"])[0]
        self.owner.seen.append(what)
        fault = self.owner.fault if re.search(self.owner.only, what) else None
        while fault == "hang" and self.owner.fault == "hang":
            threading.Event().wait(0.05)
        if fault and not isinstance(fault, int):
            self.close_connection = True
            return
        with self.owner.lock:
            answer = json.dumps(
                {"errors": [{"message": "planted"}]} if fault else self.owner.post(what, body)
            ).encode()
        self.send_response(fault or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST

    def log_message(self, *_: object) -> None:
        """Nothing."""
