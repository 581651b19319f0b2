"""training/checkpoint.py: whole or absent, exact, and never silently wrong."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.training import checkpoint
from scratchgen.training.checkpoint import CheckpointError, load, save, whole_file

ARRAYS = {
    "theta": np.linspace(-1.0, 1.0, 7, dtype=np.float32),
    "step": np.asarray(17),
    "history/kl": np.asarray([0.1, np.nan, -np.inf]),
}
META = {"config": {"model": "vae", "lr": 0.1}, "layout": {"w": [7]}}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "c.npz", ARRAYS, META)
    return tmp_path / "c.npz"


def same(a, b) -> bool:
    return set(a) == set(b) and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


def test_what_is_saved_comes_back_bit_for_bit(path):
    arrays, meta = load(path)
    assert same(arrays, ARRAYS)
    assert meta["config"] == META["config"]
    assert (meta["format"], meta["version"]) == (checkpoint.FORMAT, checkpoint.VERSION)


def test_plain_numpy_opens_it_without_pickle(path):
    with np.load(path, allow_pickle=False) as archive:
        assert json.loads(archive["meta"].tobytes())["layout"] == {"w": [7]}


@given(st.data())
def test_no_changed_byte_passes_unseen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "c.npz"
    save(path, ARRAYS, META)
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    _harmless_or_refused(path)


@given(st.data())
def test_no_truncation_passes_unseen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "c.npz"
    save(path, ARRAYS, META)
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(CheckpointError):
        load(path)


def _harmless_or_refused(path):
    try:
        arrays, _ = load(path)
    except CheckpointError:
        return
    assert same(arrays, ARRAYS), "a changed file was read as something else"


@pytest.mark.parametrize(
    "content",
    [b"", b"not an archive", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}"],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or is another kind of file"):
        load(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*; train one first"):
        load(tmp_path / "c.npz")


def test_contents_exchanged_by_someone_who_knows_zip_are_noticed(path):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["theta"] = arrays["theta"] + 1.0
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match="do not match its digest"):
        load(path)


def test_pickles_are_never_read(tmp_path):
    evil = io.BytesIO()
    np.save(evil, np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("meta.npy", evil.getvalue())
    with pytest.raises(CheckpointError):
        load(tmp_path / "c.npz")


def test_another_version_is_named(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    with pytest.raises(
        CheckpointError, match="of version 2, got 'scratchgen checkpoint' version 1"
    ):
        load(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(path):
    before = path.read_bytes()

    def interrupted_write():
        with whole_file(path) as file:
            file.write(b"half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="full"):
        interrupted_write()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["c.npz"]
