"""A folder goes to a hub through its client: here to a stand-in on this machine, which keeps what it is sent."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

import sieve
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures


class Hub(BaseHTTPRequestHandler):
    """The few requests of creating a repository and of one commit; files are sent in the commit itself."""

    def do_HEAD(self):
        self._answer({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, self.headers.get("authorization"), body))
        address = f"http://127.0.0.1:{self.server.server_port}"
        if self.path.startswith("/api/repos/create"):
            self._answer({"url": f"{address}/{self.server.name}", "id": self.server.name})
        elif "/preupload/" in self.path:
            taken = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": one["path"], **taken} for one in json.loads(body)["files"]]
            self._answer({"files": files, "commitOid": "0" * 40})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{address}/{self.server.name}/commit/1"
            self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": url}, self.server.status)
        else:
            self._answer({})

    def do_GET(self):
        self._answer({"id": self.server.name, "sha": "0" * 40, "siblings": []})

    def _answer(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *given):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.name, server.status = [], {}, "someone/small", 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def pushed(hub, *arguments, token="secret"):
    """`sieve …` in a new process, whose client knows this hub alone."""
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN_PATH": "/nowhere"}
    command = [sys.executable, "-m", "sieve", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_folder_is_pushed_without_the_places_of_its_machine(run, world, tmp_path, hub):  # noqa: F811
    folder = tmp_path / "pruned"
    assert run(*options(world, folder), "--quiet")[0] == 0
    done = pushed(hub, "push", folder, hub.name)
    assert done.returncode == 0, done.stderr
    assert f"/{hub.name}" in done.stdout
    _, token, body = next(one for one in hub.asked if one[0].startswith("/api/repos/create"))
    assert token == "Bearer secret"
    asked = json.loads(body)  # versions of the client say it in their own way
    assert asked.get("private") is True or asked.get("visibility") == "private"
    assert set(hub.files) == {file.name for file in folder.iterdir()}
    home = str(tmp_path).split("/")[1].encode()
    for name, content in hub.files.items():
        assert b"/" + home + b"/" not in content, name
    assert yaml.safe_load(hub.files["task.yaml"])["data"] == "legs.jsonl"
    before = json.loads((folder / "report.json").read_text())
    assert json.loads(hub.files["report.json"]) == before | {"model": "model"}
    # What was sent is a whole folder, whose checksums are right.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in hub.files.items():
        (copy / name).write_bytes(content)
    with sieve.progress.shown():
        sieve.load(copy)
    assert (folder / "task.yaml").read_text() != hub.files["task.yaml"].decode()


def test_rows_in_the_task_file_stay_here(run, world, tmp_path, hub):  # noqa: F811
    folder = tmp_path / "pruned"
    assert run(*options(world, folder), "--quiet")[0] == 0
    task = yaml.safe_load((folder / "task.yaml").read_text())
    (folder / "task.yaml").write_text(yaml.safe_dump(task | {"data": [{"number": 1, "animal": "private", "label": 0}]}))
    assert pushed(hub, "push", folder, hub.name).returncode == 0
    assert b"private" not in hub.files["task.yaml"]


def test_pruning_and_pushing(world, tmp_path, hub):
    folder = tmp_path / "pruned"
    done = pushed(hub, *options(world, folder), "--push-to-hub", hub.name, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "report.json" in hub.files


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("a/b/c", "secret", "is no name of a repository"),
        ("a/b", "", "run `hf auth login`"),
        ("a/b", "secret", "cannot be reached"),
    ],
)
def test_what_cannot_be_pushed_is_known_before_any_work(world, tmp_path, hub, name, token, words):
    if "reached" in words:
        hub.shutdown()
        hub.server_close()
    done = pushed(hub, *options(world, tmp_path / "pruned"), "--push-to-hub", name, "--quiet", token=token)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert words in done.stderr
    assert not (tmp_path / "pruned").exists()


def test_a_hub_that_refuses(run, world, tmp_path, hub):  # noqa: F811
    shutil.copytree(world.model, tmp_path / "model")
    hub.status = 403
    done = pushed(hub, "push", tmp_path / "model", hub.name)
    assert done.returncode == 4
    assert "did not take someone/small" in done.stderr.splitlines()[-1]
    assert pushed(hub, "push", tmp_path, hub.name).returncode == 2
