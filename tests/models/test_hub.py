"""Weights of the hub, from a server of our own that speaks as much of its protocol as a download needs."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.registry import dataset_info
from foundations.errors import RunError, UsageError
from models.hub import weights_of
from models.registry import build_model
from tests.conftest import Command

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEST = ["test", "--dataset_name=digits", "--model_name=lenet_16", "--model_type=pretrained", "--standard_eval"]
TEST += ["--num_examples=40"]


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories of one file; asked for anything else it answers as the hub does."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        content = self.files.get(self.path)
        if content is None:
            known = any(self.path.startswith(path.split("/resolve/")[0] + "/") for path in self.files)
            self.send_response(404)
            kind = (
                "EntryNotFound" if known and "/main/" in self.path else "RevisionNotFound" if known else "RepoNotFound"
            )
            self.send_header("X-Error-Code", kind)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *words: object) -> None:
        pass


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(build_model("lenet_16", dataset_info("digits")).state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def hub(weights: Path) -> Iterator[tuple[dict[str, str], type[Hub]]]:
    """The variables of the environment that lead to the server, and the server."""
    files = {"/lab/net/resolve/main/model.safetensors": weights.read_bytes(), "/lab/pickles/resolve/main/model.pt": b""}
    handler = type("Handler", (Hub,), {"files": files, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = str(weights.parent / "hub")
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": home}, handler
    server.shutdown()
    server.server_close()


def test_fetched_once_and_the_run_is_that_of_the_file(
    hub: tuple[dict[str, str], type[Hub]], weights: Path, command: Command
) -> None:
    variables, server = hub
    asked = command(*TEST, "--model_source=hf:lab/net", environment=variables)
    assert asked.returncode == 0, asked.stderr
    assert any(line.startswith("GET /lab/net") for line in server.asked)
    # The same weights by a path are the same run, which is there already.
    made = command.where(*TEST, f"--model_source=file:{weights}")
    assert (made / "result.json").is_file()
    assert str(weights.parent) not in (made / "hparams.json").read_text()
    alone = {**variables, "HF_HUB_OFFLINE": "1"}
    again = command(*TEST, "--model_source=hf:lab/net", "--display_output_location", environment=alone)
    assert again.stdout.strip() == str(made)
    for source, told in {
        "lab/nothing": "no such repository",
        "lab/net@v2": "no such repository or revision",
        "lab/pickles": "expected a repository with model.safetensors",
    }.items():
        wrong = command(*TEST, f"--model_source=hf:{source}", environment=variables)
        assert wrong.returncode == 1 and told in wrong.stderr and wrong.stderr.count("\n") == 1, wrong.stderr
    wrong = command(*TEST, "--model_source=hf:lab/other", environment=alone)
    assert wrong.returncode == 1 and "cannot be reached" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_a_folder(weights: Path) -> None:
    assert weights_of(str(weights.parent)) == weights
    assert len(load_file(weights_of(str(weights.parent)))) > 4
    (weights.parent / "empty").mkdir()
    with pytest.raises(RunError, match=r"expected model\.safetensors in that folder"):
        weights_of(str(weights.parent / "empty"))
    for name in ("", "net", "lab/net/more", "../no_such_lab", "@main", "lab/net@"):
        with pytest.raises(UsageError, match="expected hf:ORG/NAME"):
            weights_of(name)
