"""Fetching CIFAR-10 from its published address: resumable, checked, and all or nothing.

Pooch, the usual library for this, checks and retries too, but begins anew after every break, and
writes what a server sends without end. So the connection is our own.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import HoldfastError, InputError
from ..runs.files import make_folder
from ..runs.progress import ProgressLine
from . import cifar10

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE = "cifar-10-python.tar.gz"

TRIES = 3  # in a row that bring nothing new
TIMEOUT = 30  # seconds without a byte
LARGEST = 2**30  # bytes; the archive has 170 million, and a server may send without end
_CHUNK = 2**18  # bytes


def fetch(folder: str | Path, url: str = URL, md5: str = MD5, pause: float = 1.0) -> Path:
    """Downloads CIFAR-10 and unpacks it as `folder/cifar-10-batches-py`.

    What has arrived is kept in a `.part` file, from which the next attempt, or the next call,
    goes on. An archive that somebody has put into the folder by hand is used instead. The
    unpacked folder appears whole or not at all.

    Args:
        folder: made if it is not there.
        url: address of the archive.
        md5: its checksum, in hexadecimal.
        pause: seconds between two attempts, longer after each that brings nothing.

    Returns:
        The folder that holds the batches.

    Raises:
        InputError: the folder cannot be written, is on a full disk, or holds some but not all of
            CIFAR-10 already.
        HoldfastError: no network, or the archive is not the published one.
    """
    folder = Path(folder)
    if folder.name == cifar10.SUBFOLDER:
        folder = folder.parent
    target = folder / cifar10.SUBFOLDER
    archive, part = folder / ARCHIVE, folder / f"{ARCHIVE}.part"
    try:
        make_folder(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(
                f"{target}: holds something, but not all of CIFAR-10; move it away to download anew"
            )
        if archive.exists():
            if _md5(archive) != md5:
                raise InputError(f"{archive}: is not the published archive; remove it")
            _unpack(archive, target)
            return target
        if not part.exists() or _md5(part) != md5:
            _download(url, part, md5, pause)
        if _md5(part) != md5:
            part.unlink()
            raise HoldfastError(
                f"{url}: what arrived is not the published archive (its checksum differs; is there"
                f" a login page between?); {_by_hand(folder, url)}"
            )
        _unpack(part, target)
        part.unlink()
        return target
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space (400 MB"
            " are needed) or give another folder"
        ) from None


def _by_hand(folder: Path, url: str) -> str:
    return f"download {url} elsewhere, put it in {folder} as {ARCHIVE}, and give the command again"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _Broken(Exception):
    """A connection that failed; the message is the reason."""


def _download(url: str, part: Path, md5: str, pause: float) -> None:
    """Brings `part` to the full length, in as many connections as that takes.

    What a server says about the length is believed only as far as it does no harm: the checksum
    tells whether everything is here.
    """
    fruitless, most = 0, 0
    with ProgressLine(f"fetching {ARCHIVE}", interval=5) as progress:
        while True:
            try:
                if _continue(url, part, progress):
                    return
                reason = "the connection broke off"
            except _Broken as error:
                reason = str(error)
            if part.exists() and _md5(part) == md5:
                return
            # Against the most that ever was here: a server that begins anew each time gets nowhere.
            fruitless = 0 if _size(part) > most else fruitless + 1
            most = max(most, _size(part))
            if fruitless == TRIES:
                raise HoldfastError(
                    f"{url}: cannot be fetched ({reason}); try again later, or"
                    f" {_by_hand(part.parent, url)}"
                )
            time.sleep(pause * max(1, fruitless))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _network() -> Iterator[None]:
    """Tells a failure of the network from one of the disk: both are an OSError."""
    try:
        yield
    # A ValueError comes of a redirection to what is no address.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _Broken(" ".join(str(reason).split()) or type(error).__name__) from None


def _continue(url: str, part: Path, progress: ProgressLine) -> bool:
    """One connection. Returns whether everything is here now."""
    here = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={here}-"} if here else {})
    with _network():
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # Nothing lies beyond what is here, yet its checksum is wrong: begin again.
            part.unlink(missing_ok=True)
            return False
    with response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {here}-")
        if not (response.status == 206 and resumed):
            here = 0  # a server that does not resume sends all of it
        length = _length(response.headers.get("Content-Length"))
        total = None if length is None else here + length
        with part.open("ab" if here else "wb") as file:
            while True:
                if total:
                    progress.update(here / total, f"{here / 1e6:.0f} of {total / 1e6:.0f} MB")
                with _network():
                    chunk = response.read(_CHUNK)
                if not chunk:
                    return total is None or here >= total
                file.write(chunk)
                here += len(chunk)
                if here > LARGEST:
                    raise HoldfastError(
                        f"{url}: sends more than {LARGEST // 2**20} MiB, so it is not the archive;"
                        f" remove {part} and {_by_hand(part.parent, url)}"
                    )


def _length(said: str | None) -> int | None:
    """What a server says of the length, in bytes; None where that is no length."""
    if said is None or not (said.isascii() and said.isdigit()) or len(said) > 18:
        return None
    return int(said)


def _unpack(archive: Path, target: Path) -> None:
    """Unpacks beside the target, and moves the whole folder into its place at the end."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        unpacked = Path(temporary) / cifar10.SUBFOLDER
        unpacked.mkdir()
        try:
            with tarfile.open(archive, "r:gz") as tar:
                # Only plain files of the names that belong there; paths and links mean nothing.
                for member in tar:
                    name = PurePosixPath(member.name).name
                    content = tar.extractfile(member) if member.isreg() else None
                    if content and cifar10.is_file_name(name):
                        with content, (unpacked / name).open("wb") as file:
                            shutil.copyfileobj(content, file)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise HoldfastError(f"{archive}: cannot be unpacked ({error}); remove it") from None
        if not cifar10.is_complete(unpacked):
            raise HoldfastError(f"{archive}: holds no complete CIFAR-10; remove it")
        if target.exists():
            target.rmdir()  # empty, as was checked before the download
        unpacked.rename(target)
