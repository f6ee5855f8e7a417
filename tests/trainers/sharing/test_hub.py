"""push against a hub on this machine: the calls and bytes that it gets, and what is said when it refuses."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainers.cli import main
from trainers.sharing.card import EMBEDDED_ID
from trainers.sharing.hub import uploads

ROOT = Path(__file__).resolve().parents[3]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; `refuse` maps the end of a path to a status."""

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_PUT = do_GET = do_POST

    def answer(self, body):
        server = self.server
        path = self.path.split("?")[0]
        token = self.headers.get("Authorization")
        server.calls.append((self.command, path, token, body))
        status = next((status for end, status in server.refuse.items() if end in path), 200)
        if status != 200:
            return self.send({"error": "no, not so"}, status)
        if path == "/api/repos/create":
            return self.send({"url": f"{server.url}/user/genes"})
        if path == "/api/validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if path == "/api/models/user/genes/preupload/main":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.send({"files": files})
        if path == "/user/genes.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{server.url}/upload/{one['oid']}"},
                                    "verify": {"href": f"{server.url}/verify"}}}
                for one in json.loads(body)["objects"]
            ]  # fmt: skip
            return self.send({"transfer": "basic", "objects": objects})
        if path == "/api/models/user/genes/commit/main":
            return self.send(
                {"success": True, "commitOid": "a" * 40, "commitUrl": f"{server.url}/user/genes/commit/{'a' * 40}"}
            )
        return self.send({}, 200 if path.startswith(("/upload/", "/verify")) else 404)

    def send(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    """A hub that is served from a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.calls, server.refuse = [], {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def push(home, endpoint, *arguments, token="hf_secret"):
    """The command in a process of its own, for the hub's address is read once in a process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "trainers", "push", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("source", [".", "adapter"])
def test_a_run_goes_to_the_hub_whole(hub, finished, tmp_path, source):
    run = finished["lora"]
    done = push(tmp_path, hub.url, run / source, "user/genes", "--private", "--message", "Genes")
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.url}/user/genes/commit/{'a' * 40}"
    guarded = ("/api/repos/", "/api/models/", "/user/")
    assert {token for _, path, token, _ in hub.calls if path.startswith(guarded)} == {"Bearer hf_secret"}
    bodies = {path: body for _, path, _, body in hub.calls}
    created = json.loads(bodies["/api/repos/create"])
    assert (created["organization"], created["name"]) == ("user", "genes")
    assert created.get("visibility", "private" if created.get("private") else None) == "private"
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert bodies[f"/upload/{digest}"] == weights
    assert json.loads(bodies["/verify"])["oid"] == digest
    lines = [json.loads(line) for line in bodies["/api/models/user/genes/commit/main"].splitlines()]
    assert [line["value"]["summary"] for line in lines if line["key"] == "header"] == ["Genes"]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    large = [line["value"] for line in lines if line["key"] == "lfsFile"]
    assert [(file["path"], file["oid"]) for file in large] == [("adapter_model.safetensors", digest)]
    own = {path.name: path.read_bytes() for path in (run / "adapter").iterdir()}
    assert sent == {name: content for name, content in own.items() if name != "adapter_model.safetensors"}
    assert {"README.md", "head.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"} <= sent.keys()


def test_a_dry_run_asks_nobody(hub, finished, tmp_path):
    done = push(tmp_path, hub.url, finished["full"], "user/genes", "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    assert hub.calls == []
    names = [line.split()[1] for line in done.stdout.splitlines()[:-1]]
    assert names == sorted(path.name for path in (finished["full"] / "best").iterdir())
    assert done.stdout.splitlines()[-1].endswith("would go to user/genes; nothing was uploaded")


@pytest.mark.parametrize(
    ("refuse", "said"),
    [
        ({"/api/": 401}, "log in again with `hf auth login`"),
        ({"/api/": 403}, "The token may not write there"),
        ({"commit/main": 409}, "run the same again"),
        ({"preupload/main": 404}, "check the name before the slash"),
    ],
)
@pytest.mark.fault("the hub refuses an upload", "one line that says what to do, exit 2", "nothing here")
def test_a_refusal_is_one_line(hub, finished, tmp_path, refuse, said):
    hub.refuse.update(refuse)
    done = push(tmp_path, hub.url, finished["lora"], "user/genes")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: user/genes was not written (status 4")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_without_a_token_or_a_hub(finished, tmp_path):
    done = push(tmp_path, "http://127.0.0.1:9", finished["lora"], "user/genes", token="")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: There is no token for the hub. Log in with `hf auth login`")
    done = push(tmp_path, "http://127.0.0.1:9", finished["lora"], "user/genes")
    assert done.returncode == 2
    assert "error: http://127.0.0.1:9 cannot be reached (" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_repository_or_no_model_is_refused(finished, tmp_path, capsys):
    for arguments, said in (
        (["genes"], "expected user/name"),
        (["a/b/c"], "expected user/name"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["push", str(finished["lora"]), *arguments])
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match="neither an adapter nor a model"):
        uploads(tmp_path)
    folder = shutil.copytree(finished["lora"] / "adapter", tmp_path / "adapter")
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"has no README\.md"):
        uploads(folder)


def test_an_adapter_of_the_embedded_model_names_it_as_the_hub_does(finished, tmp_path):
    folder = shutil.copytree(finished["lora"] / "adapter", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "embedded"}))
    (folder / ".hidden").touch()
    sent = {file.name: file.content for file in uploads(folder)}
    assert json.loads(sent["adapter_config.json"]) == {**config, "base_model_name_or_path": EMBEDDED_ID}
    assert ".hidden" not in sent
