"""Files that are either whole or absent, and the checkpoint that resumes a run bit for bit.

A checkpoint is one .npz archive of plain arrays (numpy.load opens it; nothing is pickled):

    meta                 uint8, the bytes of a JSON object: format, version, config, layout, digest
    theta                (P,) every parameter, laid end to end in the order of meta.layout
    buffers/NAME         running statistics, if the model owns any
    optimiser/NAME       what the optimiser's state() returned
    ema/NAME             what the average's state() returned
    control/NAME         what the control of the KL terms' state() returned
    guard/NAME           what the guard against large gradients' state() returned
    opponent/NAME        what the opponent's state() returned
    step                 the number of steps taken
    history/NAME         (rows,) the logged values, one row an interval
    pending/NAME         the running sums of the interval that was cut

meta.digest is a SHA-256 over names, dtypes, shapes and bytes of all other arrays, in sorted order.
"""

import hashlib
import json
import os
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np

FORMAT = "scratchgen checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to something else."""


@contextmanager
def whole_file(path: Path, mode: str = "wb"):
    """Open a file for writing that appears at `path` only when the block ends without an error.

    It is written beside its target under a temporary name, flushed to disk and renamed, so readers
    see the old file or the new one and never half of either.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def save(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Write a checkpoint.

    Args:
        path: the .npz file; replaced as a whole.
        arrays: name -> host array.
        meta: JSON-ready facts about the run (config, layout).
    """
    header = {"format": FORMAT, "version": VERSION, **meta, "digest": _digest(arrays)}
    encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with whole_file(path) as file:
        np.savez(file, **{"meta": encoded, **arrays})  # type: ignore[arg-type]


def load(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read a checkpoint back.

    Args:
        path: the .npz file.

    Returns:
        (arrays, meta) as `save` was given them.

    Raises:
        CheckpointError: there is no such file, it is not one of ours, or its contents do not match
            its digest.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}; train one first")
    try:
        raw = BytesIO(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        with np.load(raw, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays.pop("meta").tobytes().decode())
        known = meta["format"] == FORMAT and meta["version"] == VERSION
        intact = meta["digest"] == _digest(arrays)
    except Exception as error:  # whatever NumPy and zipfile raise on foreign or altered bytes
        raise CheckpointError(
            f"{path} cannot be read as a scratchgen checkpoint ({type(error).__name__}); "
            "it is damaged or is another kind of file"
        ) from error
    if not known:
        raise CheckpointError(
            f"{path} must be a {FORMAT} of version {VERSION}, "
            f"got {meta['format']!r} version {meta['version']!r}"
        )
    if not intact:
        raise CheckpointError(f"{path} is damaged: its contents do not match its digest")
    return arrays, meta


def _digest(arrays: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        total.update(array.tobytes())
    return total.hexdigest()
