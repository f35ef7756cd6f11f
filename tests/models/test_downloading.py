"""Downloads from a local server through every failure that is known of Google Drive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from foundations.errors import RunError
from models import downloading
from models.downloading import Wanted, from_drive, from_folder, from_url, obtain, only_one, verify

PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"


class Server(ThreadingHTTPServer):
    """Serves `content`; `behaviour` says how. Keeps the Range headers it was asked with."""

    content = b""
    behaviour = "well"
    ranges: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.behaviour == "missing":
            return self.send_error(404)
        body = PAGE if server.behaviour == "page" else server.content
        start = 0
        if asked and server.behaviour != "no ranges":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        body = body[start:]
        if server.behaviour == "short without length":
            body = body[: len(body) // 2]
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        breaks = server.behaviour == "breaks" or (server.behaviour == "breaks once" and len(server.ranges) == 1)
        self.wfile.write(body[: len(body) // 2] if breaks else body)
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def weights() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"weight": torch.randn(200, 200)}, buffer)
    return buffer.getvalue()


@pytest.fixture
def server(weights: bytes) -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.content, made.ranges = weights, []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


class Bar:
    total = 0

    def update(self, amount: int) -> None:
        self.total += amount


@pytest.fixture
def wanted(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    url = f"http://127.0.0.1:{server.server_address[1]}/x.pt"
    return Wanted(tmp_path / "cifar10" / "x.pt", from_url(url), "By hand: save it there.")


def part_of(wanted: Wanted) -> Path:
    return wanted.path.with_name("x.pt.part")


def test_a_whole_file_is_kept_with_its_checksum(wanted: Wanted, server: Server) -> None:
    bar = Bar()
    assert obtain(wanted, bar) == "fetched"
    assert wanted.path.read_bytes() == server.content
    assert bar.total == len(server.content)
    assert verify(wanted.path) is None
    assert obtain(wanted, bar) == "there already"
    assert len(server.ranges) == 1
    wanted.path.write_bytes(server.content[:-1] + b"x")
    assert "was recorded when it was fetched" in str(verify(wanted.path))


def test_a_broken_connection_is_taken_up_where_it_ended(wanted: Wanted, server: Server) -> None:
    server.behaviour = "breaks once"
    assert obtain(wanted, Bar()) == "fetched"
    assert server.ranges == [None, f"bytes={len(server.content) // 2}-"]
    assert wanted.path.read_bytes() == server.content


def test_a_later_run_goes_on_with_the_part(wanted: Wanted, server: Server) -> None:
    server.behaviour = "breaks"
    with pytest.raises(RunError, match="the same command goes on from what came"):
        obtain(wanted, Bar())
    had = part_of(wanted).stat().st_size
    assert 0 < had < len(server.content) and not wanted.path.exists()
    server.behaviour, server.ranges = "well", []
    assert obtain(wanted, Bar()) == "fetched"
    assert server.ranges == [f"bytes={had}-"]
    assert wanted.path.read_bytes() == server.content


def test_a_part_that_is_whole_needs_nothing_more(wanted: Wanted, server: Server) -> None:
    part_of(wanted).parent.mkdir(parents=True)
    part_of(wanted).write_bytes(server.content)
    assert obtain(wanted, Bar()) == "fetched"
    assert wanted.path.read_bytes() == server.content


def test_a_server_without_ranges_starts_anew(wanted: Wanted, server: Server) -> None:
    part_of(wanted).parent.mkdir(parents=True)
    part_of(wanted).write_bytes(b"half of something")
    server.behaviour = "no ranges"
    obtain(wanted, Bar())
    assert wanted.path.read_bytes() == server.content


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ("page", "x.pt: it is a web page, not weights; it was removed. By hand: save it there."),
        ("short without length", "x.pt: it is cut short; it was removed. By hand: save it there."),
        ("missing", "the server answers 404"),
    ],
)
def test_what_is_no_checkpoint_is_removed(wanted: Wanted, server: Server, behaviour: str, told: str) -> None:
    server.behaviour = behaviour
    with pytest.raises(RunError, match=told):
        obtain(wanted, Bar())
    assert not wanted.path.exists() and not part_of(wanted).exists()
    server.behaviour = "well"
    assert obtain(wanted, Bar()) == "fetched"


def test_other_content_than_the_first_time_is_refused(wanted: Wanted, server: Server) -> None:
    import io

    obtain(wanted, Bar())
    wanted.path.unlink()
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, buffer)
    server.content = buffer.getvalue()
    with pytest.raises(RunError, match="not what was recorded at the first download"):
        obtain(wanted, Bar())
    assert not wanted.path.exists()


def test_a_damaged_file_that_is_there_is_removed(wanted: Wanted) -> None:
    wanted.path.parent.mkdir(parents=True)
    wanted.path.write_bytes(PAGE)
    with pytest.raises(
        RunError, match="it is a web page, not weights; the file was removed, run the same command again"
    ):
        obtain(wanted, Bar())
    assert obtain(wanted, Bar()) == "fetched"


def test_offline_is_said_in_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    wanted = Wanted(tmp_path / "x.pt", from_url("http://127.0.0.1:1/x.pt"), "")
    with pytest.raises(RunError, match=r"no connection \(offline\?\)"):
        obtain(wanted, Bar())


def test_google_drive_goes_through_gdown(tmp_path: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdown

    asked = {}

    def download(**options: Any) -> str:
        asked.update(options)
        Path(options["output"]).write_bytes(weights)
        return options["output"]

    monkeypatch.setattr(gdown, "download", download)
    obtain(Wanted(tmp_path / "x.pt", from_drive("an id"), ""), Bar())
    assert asked == {"id": "an id", "output": str(tmp_path / "x.pt.part"), "quiet": True, "resume": False}
    monkeypatch.setattr(gdown, "download", lambda **_: None)
    with pytest.raises(RunError, match=r"Google Drive \(an id\) gave no file"):
        obtain(Wanted(tmp_path / "y.pt", from_drive("an id"), ""), Bar())


def test_files_that_are_there_already_are_copied(tmp_path: Path, weights: bytes) -> None:
    (tmp_path / "had").mkdir()
    (tmp_path / "had" / "x.pt").write_bytes(weights)
    names = ["cifar10/Linf/x.pt", "x.pt"]
    obtain(Wanted(tmp_path / "x.pt", from_folder(tmp_path / "had", names), ""), Bar())
    assert (tmp_path / "x.pt").read_bytes() == weights
    with pytest.raises(RunError, match=r"y.pt is not in .*had, as a/y.pt or y.pt"):
        obtain(Wanted(tmp_path / "y.pt", from_folder(tmp_path / "had", ["a/y.pt", "y.pt"]), ""), Bar())


def test_only_one_fetches_at_a_time(tmp_path: Path) -> None:
    told = "another download_pretrained is at work"
    with only_one(tmp_path), pytest.raises(RunError, match=told), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_checksums_of_files_fetched_together_are_all_kept(tmp_path: Path, weights: bytes) -> None:
    paths = [tmp_path / f"{i}.pt" for i in range(8)]
    for path in paths:
        path.write_bytes(weights)
    threads = [threading.Thread(target=downloading.record, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verify(path) for path in paths] == [None] * 8
