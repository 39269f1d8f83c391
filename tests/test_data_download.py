"""The download, against a server on this machine that breaks off, forgets, and lies."""

from __future__ import annotations

import hashlib
import io
import resource
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import data_files
import pytest

from holdfast import data
from holdfast.data import cifar10, download
from holdfast.errors import HoldfastError, InputError

N = data_files.IMAGES_PER_BATCH


class Server(ThreadingHTTPServer):
    """Serves `content`; each connection is closed after the next of `cuts` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.cuts: list[int] = []
        self.resumes = True
        self.requests: list[str | None] = []  # the Range header of each
        self.length: str | None = ""  # what is said of the length; "": the truth, None: nothing
        self.location = ""  # where requests are sent on to
        self.endless = False

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/cifar-10-python.tar.gz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        header = self.headers.get("Range")
        server.requests.append(header)
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        start = int(header.removeprefix("bytes=").rstrip("-")) if header and server.resumes else 0
        total = len(server.content)
        if start >= total:
            self.send_error(416 if total else 404)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if server.length is not None:
            self.send_header("Content-Length", server.length or str(total - start))
        self.end_headers()
        while server.endless:
            self.wfile.write(bytes(2**20))
        cut = server.cuts.pop(0) if server.cuts else total
        self.wfile.write(server.content[start : start + cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", N)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = data_files.published_layout(tmp_path_factory.mktemp("made") / "cifar-10-batches-py")
    return packed(lambda tar: tar.add(folder, folder.name))


def packed(fill: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        fill(tar)  # type: ignore[operator]
    return buffer.getvalue()


def fetch(server: Server, folder: Path) -> Path:
    md5 = hashlib.md5(server.content).hexdigest()
    return download.fetch(folder, server.url, md5, pause=0)


def test_the_published_address() -> None:
    assert download.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert download.MD5 == "c58f30108f718f92721af3b95e74349a"


def test_a_download_that_breaks_off_twice(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content, server.cuts = archive, [100_000, 200_000]
    folder = tmp_path / "new" / "datasets"
    assert fetch(server, folder) == folder / "cifar-10-batches-py"
    assert server.requests == [None, "bytes=100000-", "bytes=300000-"]
    assert [path.name for path in folder.iterdir()] == ["cifar-10-batches-py"]  # nothing else left
    assert len(data.load(folder).train) == 4 * N


def test_the_next_call_goes_on(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = archive
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(archive[:50_000])
    fetch(server, tmp_path)
    assert server.requests == ["bytes=50000-"]
    assert cifar10.is_complete(tmp_path)


def test_what_arrived_whole_is_not_fetched_again(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.content = archive
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(archive)
    fetch(server, tmp_path)
    assert server.requests == [] and cifar10.is_complete(tmp_path)


@pytest.mark.parametrize("resumes", [True, False])
def test_a_part_file_of_something_else(
    server: Server, archive: bytes, tmp_path: Path, resumes: bool
) -> None:
    server.content, server.resumes = archive, resumes
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(b"x" * (len(archive) + 5))
    fetch(server, tmp_path)  # resuming cannot work, so it begins again
    assert cifar10.is_complete(tmp_path)


@pytest.mark.parametrize(
    "said",
    ["abc", "-5", "1e9", "0x10", "9" * 30, "12, 13", " ", None, "²", "900000000"],
)
@pytest.mark.parametrize("resumes", [True, False])
def test_a_server_that_lies_about_the_length(
    server: Server, archive: bytes, tmp_path: Path, said: str | None, resumes: bool
) -> None:
    """The checksum decides; a length that is too large is no reason to fetch it without end."""
    server.content, server.length, server.resumes = archive, said, resumes
    fetch(server, tmp_path)
    assert cifar10.is_complete(tmp_path) and len(server.requests) == 1


def test_a_server_that_promises_too_little(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content, server.length = archive, "1000"
    with pytest.raises(HoldfastError, match="not the published archive") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_server_that_never_ends(
    server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGEST", 3 * 2**20)
    server.content, server.length, server.endless = archive, None, True
    try:
        with pytest.raises(HoldfastError, match="sends more than 3 MiB"):
            fetch(server, tmp_path)
    finally:
        server.endless = False
    assert (tmp_path / "cifar-10-python.tar.gz.part").stat().st_size < 4 * 2**20


def test_a_server_that_always_breaks_off_at_the_same_place(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    """It does not resume, so each connection brings what was here before."""
    server.content, server.cuts, server.resumes = archive, [1000] * 50, False
    with pytest.raises(HoldfastError, match="broke off"):
        fetch(server, tmp_path)
    assert len(server.requests) < 6


@pytest.mark.parametrize(
    "location",
    ["http://[::1", "http://x:abc/", "file:///etc/passwd", "http://\xff/", "//", "ftp://[", "\0"],
)
def test_a_redirection_to_nowhere_is_one_line(
    server: Server, tmp_path: Path, location: str
) -> None:
    server.content, server.location = b"x", location
    with pytest.raises(HoldfastError, match="cannot be fetched") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value)


def test_another_content_is_refused(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = b"<html>please log in</html>"
    with pytest.raises(HoldfastError, match="not the published archive") as caught:
        download.fetch(tmp_path, server.url, hashlib.md5(archive).hexdigest(), pause=0)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
        with pytest.raises(HoldfastError) as caught:
            download.fetch(tmp_path, url, pause=0)
    message = str(caught.value)
    assert "Connection refused" in message and "\n" not in message
    assert f"put it in {tmp_path} as cifar-10-python.tar.gz" in message
    assert caught.value.exit_status == 1  # a failure, not the user's mistake
    assert not cifar10.is_here(tmp_path)


def test_no_such_page(server: Server, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="Not Found"):
        download.fetch(tmp_path, server.url, pause=0)


def test_an_archive_put_there_by_hand(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = archive
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    fetch(server, tmp_path)
    assert server.requests == [] and cifar10.is_complete(tmp_path)
    assert (tmp_path / "cifar-10-python.tar.gz").exists()  # theirs to remove


def test_a_wrong_archive_put_there_by_hand(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = archive
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive[:-1])
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz: is not the published"):
        fetch(server, tmp_path)


def test_files_that_are_there_are_not_overwritten(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.content = archive
    own = data_files.write_cifar10(tmp_path / "cifar-10-batches-py", {"data_batch_1": 9})
    before = (own / "data_batch_1").read_bytes()
    with pytest.raises(InputError, match="move it away"):
        fetch(server, tmp_path)
    assert (own / "data_batch_1").read_bytes() == before and server.requests == []


def test_an_archive_cannot_write_elsewhere(server: Server, archive: bytes, tmp_path: Path) -> None:
    source = data_files.published_layout(tmp_path / "source")

    def fill(tar: tarfile.TarFile) -> None:
        for path in source.iterdir():
            tar.add(path, f"cifar-10-batches-py/{path.name}")
        for name in ("../escaped", str(tmp_path / "escaped"), "../data_batch_9"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"hello"))
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_7")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)

    server.content = packed(fill)
    folder = tmp_path / "a" / "b"
    target = fetch(server, folder)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "a"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert not any(path.is_symlink() for path in target.iterdir())


def test_an_archive_without_batches_leaves_nothing_unpacked(server: Server, tmp_path: Path) -> None:
    server.content = packed(lambda tar: None)
    with pytest.raises(HoldfastError, match="no complete CIFAR-10"):
        fetch(server, tmp_path)
    assert not cifar10.is_here(tmp_path)
    server.content = b"no archive"
    (tmp_path / "cifar-10-python.tar.gz.part").unlink()
    with pytest.raises(HoldfastError, match="cannot be unpacked"):
        fetch(server, tmp_path)


def test_an_unwritable_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        fetch(server, tmp_path / "file" / "datasets")


def test_a_disk_that_takes_no_more(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = archive
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(archive) // 2, hard))
    try:
        with pytest.raises(InputError, match=r"cannot be written .*; free some space"):
            fetch(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not cifar10.is_here(tmp_path)
    fetch(server, tmp_path)  # with space again, it goes on
    assert server.requests[-1] == f"bytes={len(archive) // 2}-"


def test_load_fetches_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", N)

    def fake(folder: Path) -> Path:
        asked.append(folder)
        data_files.published_layout(folder / "cifar-10-batches-py")
        return folder / "cifar-10-batches-py"

    monkeypatch.setattr(data, "fetch", fake)
    with pytest.raises(InputError, match="--download"):
        data.load(tmp_path)
    assert asked == []
    for _ in range(2):
        assert len(data.load(tmp_path, download=True).test) == N
        assert asked == [tmp_path]  # once: the second time it is there
