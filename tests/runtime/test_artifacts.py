import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DataLossError, NotFoundError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("store")))


@given(content=st.binary(max_size=5000))
def test_what_is_put_is_got_under_its_sha256(store: ArtifactStore, content: bytes) -> None:
    digest = store.put(content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert store.contains(digest)
    assert store.get(digest) == content


@given(content=st.binary(max_size=50), piece_bytes=st.integers(1, 60))
def test_the_pieces_make_the_whole(store: ArtifactStore, content: bytes, piece_bytes: int) -> None:
    size, pieces = store.pieces(store.put(content), piece_bytes)
    read = list(pieces)
    assert (size, b"".join(read)) == (len(content), content)
    assert max(map(len, read)) <= piece_bytes


def test_the_last_piece_of_what_is_damaged_never_comes(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    digest = store.put(b"content")
    (path,) = tmp_path.glob(f"artifacts/*/{digest}")
    path.write_bytes(b"Content")
    _, pieces = store.pieces(digest, 3)
    assert [next(pieces), next(pieces)] == [b"Con", b"ten"]
    with pytest.raises(DataLossError):
        next(pieces)
    assert not store.contains(digest)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "../" * 21 + "x", "A" * 64, "0" * 64])
def test_no_other_digest_is_there(store: ArtifactStore, digest: str) -> None:
    assert not store.contains(digest)
    with pytest.raises(NotFoundError) as caught:
        store.get(digest)
    assert caught.value.reason == "ARTIFACT_NOT_FOUND"
    with pytest.raises(NotFoundError):
        store.pieces(digest, 10)


def test_a_damaged_artefact_is_an_error_once_and_can_be_put_again(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    digest = store.put(b"content")
    (path,) = tmp_path.glob(f"artifacts/*/{digest}")
    path.write_bytes(b"contant")
    with pytest.raises(DataLossError):
        store.get(digest)
    assert not store.contains(digest)
    assert store.get(store.put(b"content")) == b"content"


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    key = "a" * 64
    assert store.get_record(key) is None
    store.put_record(key, b"first")
    store.put_record(key, b"second")
    assert store.get_record(key) == b"second"
    (path,) = tmp_path.glob(f"records/*/{key}")
    path.write_bytes(path.read_bytes()[:-1])
    assert store.get_record(key) is None


def test_many_writers_of_one_artefact_leave_one_file(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    content = bytes(100_000)
    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(lambda _: store.put(content), range(32)))
    assert len(digests) == 1
    assert [path.name for path in tmp_path.glob("artifacts/*/*")] == list(digests)
