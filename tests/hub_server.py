"""A small Hub on this machine: enough of the Hub's HTTP API for an unmodified huggingface_hub client.

Small files are sent as the Hub sends them, by a redirect to another path; files in large file storage (LFS) by a
redirect to another host name, which refuses requests with a token. Every request is recorded in `LocalHub.requests`,
and faults can be armed in `LocalHub.faults`. Run as a script it prints its address and serves until it is stopped.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_repositories import USERS, File, HubError, Repository, card_errors, in_lfs


_NAME = r"[\w.-]+/[\w.-]+"


@dataclass
class Fault:
    """A fault for requests with `match` in their path.

    `kind` "status" answers with the HTTP status `value`; "cut" closes the connection after the share `value` of the
    answer's body, "drop" after that share of the request's body.
    """

    match: str
    kind: str
    value: float
    times: int = 10**9
    method: str | None = None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int
    user: str | None


@dataclass
class LocalHub:
    """The Hub: its repositories by kind ("model", "dataset") and id, the requests so far, and the armed faults."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        """Forget all repositories, requests and faults."""
        for store in (self.repositories, self.uploads, self.requests, self.faults):
            store.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def storage_url(self) -> str:
        """Address of the large file storage, a host of its own for the client."""
        return f"http://localhost:{self.server.server_port}"

    def create(self, repo_id: str, kind: str = "model", **settings: object) -> Repository:
        repository = self.repositories[kind, repo_id] = Repository(**settings)
        repository.add_commit("heads/main", "initial commit", {})
        return repository

    def add_files(self, repo_id: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Commit files to a repository, which is created if it does not exist, and return the commit's hash."""
        repository = self.repositories.get(("model", repo_id)) or self.create(repo_id)
        entries = {path: File.of(path, data) for path, data in files.items()}
        before = repository.commits[repository.refs.get(f"heads/{revision}", repository.refs["heads/main"])].files
        return repository.add_commit(f"heads/{revision}", "files", before | entries)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of a repository's files by path."""
        commit = self.repositories["model", repo_id].resolve(revision)
        return {path: file.data for path, file in commit.files.items()}

    def asked_for(self, name: str) -> list[Request]:
        """Return the requests whose path ends with `name`."""
        return [request for request in self.requests if request.path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer in two writes would otherwise wait 40 ms for an acknowledgement
    hub: LocalHub
    user: tuple[str, tuple[str, ...], bool] | None

    def log_message(self, *args: object) -> None:
        """Print nothing; requests are recorded instead."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionResetError, BrokenPipeError):
            self.close_connection = True

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.raw, self.route, self.query = url.path, unquote(url.path), parse_qs(url.query, keep_blank_values=True)
        self.user, self.status = None, 0
        self.body = self._read_body()
        try:
            if fault := self._fault("status"):
                raise HubError(int(fault.value), f"armed fault {fault.value}")
            self._authenticate()
            with self.hub.lock:
                self._dispatch()
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            self._reply(error.status, json.dumps({"error": error.message}).encode(), headers)
        except Exception as error:  # a hole in this server must not look like a lost connection
            self._reply(501, json.dumps({"error": f"local Hub: {error!r}"}).encode())
        finally:
            self.hub.requests.append(Request(self.command, self.route, self.status, self.user and self.user[0]))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _read_body(self) -> bytes:
        if fault := self._fault("drop"):
            self.rfile.read(int(int(self.headers.get("Content-Length") or 0) * fault.value))
            raise ConnectionResetError
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fault(self, kind: str) -> Fault | None:
        for fault in self.hub.faults:
            fits = fault.kind == kind and fault.match in self.route and fault.method in (None, self.command)
            if fits and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, object] | None = None) -> None:
        self.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | (headers or {})).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(body) > 20 and (fault := self._fault("cut")):
            self.close_connection = True
            self.wfile.write(body[: int(len(body) * fault.value)])
            self.wfile.flush()
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def _json(self, value: object, status: int = 200, **headers: object) -> None:
        self._reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _authenticate(self) -> None:
        header = self.headers.get("Authorization")
        if self.route.startswith("/storage/"):
            if header:
                raise HubError(400, "a token reached the storage")
        elif header:
            self.user = USERS.get(header.removeprefix("Bearer "))
            if self.user is None:
                raise HubError(401, "Invalid credentials in Authorization header")

    def _owns(self, repo_id: str) -> bool:
        return self.user is not None and repo_id.split("/")[0] in (self.user[0], *self.user[1])

    def _find(self, kind: str, repo_id: str, *, content: bool = False, write: bool = False) -> Repository:
        """Return a repository, or raise what the Hub answers to this user."""
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not self._owns(repo_id)):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        granted = self.user is not None and (self._owns(repo_id) or self.user[0] in repository.granted)
        if content and repository.gated and not granted:
            raise HubError(403 if self.user else 401, f"Access to {kind} {repo_id} is restricted.", "GatedRepo")
        if write and not (self.user and self.user[2] and (self._owns(repo_id) or self.query.get("create_pr"))):
            raise HubError(403 if self.user else 401, "You don't have the rights to write to this repository")
        return repository

    def _dispatch(self) -> None:
        if self.route == "/api/whoami-v2":
            if not self.user:
                raise HubError(401, "Invalid username or password.")
            token = {"displayName": "token", "role": "write" if self.user[2] else "read"}
            return self._json(
                {
                    "type": "user",
                    "name": self.user[0],
                    "orgs": [{"type": "org", "name": name} for name in self.user[1]],
                    "auth": {"type": "access_token", "accessToken": token},
                }
            )
        if self.route == "/api/validate-yaml":
            errors = [{"message": error} for error in card_errors(json.loads(self.body)["content"])]
            return self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if self.route == "/api/repos/create":
            return self._create()
        if match := re.fullmatch(r"/storage/(get|put)/(\w+)", self.route):
            return self._storage(match[1], match[2])
        if match := re.fullmatch(r"/lfs/verify/(\w+)", self.route):
            if match[1] not in self.hub.uploads:
                raise HubError(404, "Object does not exist")
            return self._json({})
        if match := re.fullmatch(rf"/(datasets/)?({_NAME})\.git/info/lfs/objects/batch", self.route):
            return self._lfs_batch()
        if match := re.fullmatch(rf"/api/resolve-cache/(model|dataset)s/({_NAME})/(\w+)/(.+)", self.route):
            file = self._find(match[1], match[2], content=True).resolve(match[3]).files[match[4]]
            return self._send(file, match[3])
        if match := re.fullmatch(rf"/(datasets/)?({_NAME})/resolve/([^/]+)/(.+)", self.raw):
            return self._resolve("dataset" if match[1] else "model", match[2], unquote(match[3]), unquote(match[4]))
        if match := re.fullmatch(rf"/api/(model|dataset)s/({_NAME})(?:/([\w-]+))?(?:/([^/]+))?(?:/(.*))?", self.raw):
            kind, repo_id, verb, revision, path = match.groups()
            return self._api(kind, repo_id, verb or "revision", unquote(revision or "main"), unquote(path or ""))
        raise HubError(404, "Sorry, we can't find the page you are looking for.", "RepoNotFound")

    def _create(self) -> None:
        order = json.loads(self.body)
        if not self.user:
            raise HubError(401, "Invalid username or password.")
        repo_id = f"{order.get('organization') or self.user[0]}/{order['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        kind = order.get("type") or "model"
        if not self.user[2] or not self._owns(repo_id):
            raise HubError(403, "You don't have the rights to create a repository under this namespace")
        if (kind, repo_id) in self.hub.repositories:
            return self._json(answer | {"error": "You already created this repository"}, 409)
        self.hub.create(repo_id, kind, private=bool(order.get("private")) or order.get("visibility") == "private")
        return self._json(answer)

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        commit = self._find(kind, repo_id, content=True).resolve(revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
        headers = {"X-Repo-Commit": commit.sha, "X-Linked-Size": len(file.data), "X-Linked-Etag": f'"{file.etag}"'}
        if file.lfs:
            self.hub.uploads[file.etag] = file.data
            headers["Location"] = f"{self.hub.storage_url}/storage/get/{file.etag}"
        else:
            headers["Location"] = f"/api/resolve-cache/{kind}s/{repo_id}/{commit.sha}/{quote(path)}"
        self._reply(302 if file.lfs else 307, b"Redirect", headers)

    def _send(self, file: File, sha: str = "") -> None:
        data, headers = file.data, {"ETag": f'"{file.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._reply(206, data[first : last + 1], headers)
        return self._reply(200, data, {"Content-Length": len(data), **headers})

    def _storage(self, verb: str, digest: str) -> None:
        if verb == "put":
            if hashlib.sha256(self.body).hexdigest() != digest:
                raise HubError(400, "BadDigest")
            self.hub.uploads[digest] = self.body
            return self._reply(200, b"", {"ETag": f'"{digest}"'})
        return self._send(File(self.hub.uploads[digest], True, digest))

    def _lfs_batch(self) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.hub.uploads:
                item["actions"] = {
                    "upload": {"href": f"{self.hub.storage_url}/storage/put/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify/{item['oid']}"},
                }
            objects.append(item)
        self._json({"transfer": "basic", "objects": objects})

    def _api(self, kind: str, repo_id: str, verb: str, revision: str, path: str) -> None:
        if verb == "auth-check" and revision == "write":
            self._find(kind, repo_id, write=True)
            return self._json({})
        if verb in ("branch", "preupload", "commit"):
            repository = self._find(kind, repo_id, write=True)
            return getattr(self, f"_{verb}")(repository, repo_id, revision)
        repository = self._find(kind, repo_id, content=verb == "auth-check")
        if verb == "revision":
            return self._json(repository.info(repo_id, revision))
        if verb == "auth-check":
            return self._json({})
        if verb == "refs":
            listed: dict[str, list[dict]] = {"heads": [], "tags": [], "pr": []}
            for ref, sha in repository.refs.items():
                family, name = ref.split("/", 1)
                listed[family].append({"name": name, "ref": f"refs/{ref}", "targetCommit": sha})
            return self._json(
                {"branches": listed["heads"], "tags": listed["tags"], "converts": [], "pullRequests": listed["pr"]}
            )
        commit = repository.resolve(revision)
        if verb == "commits":
            return self._json(
                [{"id": commit.sha, "title": commit.title, "message": commit.description, "authors": []}]
            )
        if verb == "tree":
            nodes = [file.node(name) for name, file in commit.files.items() if name.startswith(path)]
            folders = {str(folder) for name in commit.files for folder in PurePosixPath(name).parents if folder.name}
            nodes += [{"type": "directory", "oid": "0", "size": 0, "path": folder} for folder in sorted(folders)]
            return self._json(nodes)
        if verb == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
            return self._json([commit.files[name].node(name) for name in wanted if name in commit.files])
        raise HubError(404, f"no such verb: {verb}")

    def _branch(self, repository: Repository, repo_id: str, branch: str) -> None:
        if self.command == "DELETE":
            del repository.refs[f"heads/{branch}"]
            return self._json({})
        if f"heads/{branch}" in repository.refs:
            return self._json({"error": f"Reference already exists: {branch}"}, 409)
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.refs[f"heads/{branch}"] = repository.resolve(start).sha
        return self._json({})

    def _preupload(self, repository: Repository, repo_id: str, revision: str) -> None:
        repository.resolve(revision)
        answers = []
        for item in json.loads(self.body)["files"]:
            lfs = in_lfs(item["path"], item["size"], base64.b64decode(item["sample"]))
            mode = "lfs" if lfs else "regular"
            answers.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False})
        self._json({"files": answers, "commitOid": ""})

    def _commit(self, repository: Repository, repo_id: str, revision: str) -> None:
        create_pr = bool(self.query.get("create_pr"))
        parent = repository.resolve(revision)  # a pull request is opened against this revision
        files, header = dict(parent.files), {}
        for line in self.body.splitlines():
            key, value = json.loads(line).values()
            if key == "header":
                header = value
            elif key == "file":
                data = base64.b64decode(value["content"])
                if value["path"].endswith("README.md") and (errors := list(card_errors(data.decode()))):
                    raise HubError(400, "Bad request: invalid metadata in README.md: " + errors[0])
                files[value["path"]] = File.of(value["path"], data)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.uploads:
                    raise HubError(400, "LFS pointer pointed to a file that does not exist")
                files[value["path"]] = File(self.hub.uploads[value["oid"]], True, value["oid"])
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key == "deletedFolder":
                files = {name: file for name, file in files.items() if not name.startswith(value["path"])}
        number = sum(ref.startswith("pr/") for ref in repository.refs) + 1
        ref = f"pr/{number}" if create_pr else f"heads/{revision}"
        if revision.startswith("refs/pr/"):
            ref = revision.removeprefix("refs/")
        elif not create_pr and ref not in repository.refs:
            raise HubError(400, f"{revision} is not a branch")
        sha = repository.add_commit(ref, header["summary"], files, header.get("description", ""))
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}
        if create_pr:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        self._json({**answer, "hookOutput": ""})


if __name__ == "__main__":
    hub = LocalHub()
    hub.start()
    print(hub.url, flush=True)  # noqa: T201
    threading.Event().wait()
