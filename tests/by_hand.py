"""Data files assembled byte by byte as their formats are published, and some read back so.

Nothing here uses the package or a library's writer or reader of these formats.
"""

import ast
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np

MAT_HEADER = b"MATLAB 5.0 MAT-file, by hand".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
MAT_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}


def placed(folder, files: dict[str, bytes]) -> Path:
    """The folder, with these files in it and below it."""
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path(folder)


def idx(array: np.ndarray) -> bytes:
    """IDX: two zero bytes, 8 for unsigned bytes, the number of axes, big-endian counts, bytes."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return head + array.tobytes()


def idx_read(raw: bytes, axes: int) -> np.ndarray | None:
    """What an IDX file of that many axes holds; None if it is none, or empty."""
    if len(raw) < 4 + 4 * axes or raw[:4] != bytes([0, 0, 8, axes]):
        return None
    counts = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, 4 + 4 * axes, 4)]
    body = list(raw[4 + 4 * axes :])
    total = 1
    for count in counts:
        total *= count
    return np.asarray(body, np.uint8).reshape(counts) if 0 < total == len(body) else None


def gz(raw: bytes) -> bytes:
    """RFC 1952: ten bytes, here with a file's name after them, deflate, CRC-32 and length."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = bytes([0x1F, 0x8B, 8, 8, 1, 2, 3, 4, 0, 255]) + b"name\x00"
    packed = squeeze.compress(raw) + squeeze.flush()
    return head + packed + struct.pack("<II", zlib.crc32(raw), len(raw))


def cifar(labels: np.ndarray, codes: np.ndarray) -> bytes:
    """Records of labels (N, k) and of codes (N, 32, 32, 3), plane by plane."""
    pairs = zip(labels.tolist(), codes, strict=True)
    return b"".join(
        bytes(of) + b"".join(image[:, :, c].tobytes() for c in range(3)) for of, image in pairs
    )


def cifar_read(raw: bytes, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes and last labels of records; None if there are none or a label is out of range."""
    k = len(classes)
    records = [raw[i : i + k + 3072] for i in range(0, len(raw), k + 3072)]
    sound = all(
        len(r) == k + 3072 and all(a < b for a, b in zip(r[:k], classes, strict=True))
        for r in records
    )
    if not records or not sound:
        return None
    codes = np.empty((len(records), 32, 32, 3), np.uint8)
    for n, record in enumerate(records):
        for c in range(3):
            plane = record[k + 1024 * c : k + 1024 * (c + 1)]
            codes[n, :, :, c] = np.frombuffer(plane, np.uint8).reshape(32, 32)
    return codes, np.asarray([r[k - 1] for r in records], np.uint8)


def npy(body: bytes, shape, descr="'|u1'", by_column=False, version=1) -> bytes:
    """NumPy's format: magic, version, the header's length, a dictionary in ASCII, the numbers."""
    text = f"{{'descr': {descr}, 'fortran_order': {by_column}, 'shape': {tuple(shape)}, }}"
    width = 2 if version == 1 else 4
    padding = -(8 + width + len(text) + 1) % 64
    header = text.encode() + b" " * padding + b"\n"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(width, "little") + header + body
    )


def npy_read(raw: bytes) -> np.ndarray | None:
    """The unsigned bytes of a .npy file; None if it does not hold such."""
    width = {(1, 0): 2, (2, 0): 4}.get(tuple(raw[6:8]))
    if raw[:6] != b"\x93NUMPY" or width is None:
        return None
    start = 8 + width + int.from_bytes(raw[8 : 8 + width], "little")
    try:
        header = ast.literal_eval(raw[8 + width : start].decode("latin1").strip())
        shape, order = header["shape"], "F" if header["fortran_order"] else "C"
        is_bytes = header["descr"].lstrip("|<>=") in ("u1", "B")
        return (
            np.asarray(list(raw[start:]), np.uint8).reshape(shape, order=order)
            if is_bytes
            else None
        )
    except Exception:
        return None


def npz(members: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of .npy files."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def mat_element(kind: int, body: bytes) -> bytes:
    """One element of a MAT 5 file, filled up to a multiple of eight."""
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def mat_matrix(name: bytes, shape, body: bytes, kind: int = 2, flags: int = 9) -> bytes:
    """A matrix element: flags with the class (9: uint8), sizes, name (packed if short), numbers."""
    sizes = struct.pack(f"<{len(shape)}i", *shape)
    short = struct.pack("<HH", 1, len(name)) + name.ljust(4, b"\0")
    named = short if len(name) <= 4 else mat_element(1, name)
    head = mat_element(6, struct.pack("<II", flags, 0)) + mat_element(5, sizes)
    return mat_element(14, head + named + mat_element(kind, body))


def mat(*matrices: bytes, packed=False) -> bytes:
    """A MAT 5 file of matrices."""
    if packed:
        squeezed = [zlib.compress(m) for m in matrices]
        matrices = tuple(struct.pack("<II", 15, len(s)) + s for s in squeezed)
    return MAT_HEADER + b"".join(matrices)


def svhn(codes: np.ndarray, labels: np.ndarray, packed=False) -> bytes:
    """SVHN's file of codes (N, 32, 32, 3) and labels 0..9: the 0 is stored as 10."""
    by_column = codes.transpose(1, 2, 3, 0).tobytes(order="F")
    stored = bytes(10 if label == 0 else label for label in labels.tolist())
    x = mat_matrix(b"X", (32, 32, 3, len(codes)), by_column)
    y = mat_matrix(b"y", (len(codes), 1), stored, flags=6)  # MATLAB's doubles, stored as bytes
    return mat(x, y, packed=packed)


def _mat_elements(raw: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(raw):
        kind, length = struct.unpack_from("<II", raw, at)
        if kind > 0xFFFF:
            found.append((kind % 0x10000, raw[at + 4 : at + 4 + kind // 0x10000]))
            at += 8
        else:
            found.append((kind, raw[at + 8 : at + 8 + length]))
            at += 8 + (length + 7) // 8 * 8
    return found


def svhn_read(raw: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes and labels of an SVHN file whose matrices are not compressed; None if it is none."""
    held = {}
    try:
        for _, body in _mat_elements(raw[128:]):
            (_, _), (_, sizes), (_, name), (kind, numbers) = _mat_elements(body)
            shape = struct.unpack(f"<{len(sizes) // 4}i", sizes)
            held[name] = np.frombuffer(numbers, MAT_TYPES[kind]).reshape(shape, order="F")
        codes = np.moveaxis(held[b"X"], 3, 0)
        return codes, np.where(held[b"y"] == 10, 0, held[b"y"])[:, 0]
    except (ValueError, KeyError, struct.error):
        return None


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Length, kind, content and CRC-32 of kind and content."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """The signature and the chunk IHDR."""
    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size)


def png(pixels: np.ndarray, palette: bytes = b"", depth: int = 0) -> bytes:
    """Rows (H, W) or (H, W, C) of 8 bits without filter; with a palette, or of another depth."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    colour = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    if depth == 1:
        rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in pixels)
    if depth == 16:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = png_header(width, height, depth or 8, colour)
    table = png_chunk(b"PLTE", palette) if palette else b""
    return head + table + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def bmp(pixels: np.ndarray) -> bytes:
    """RGB (H, W, 3): rows from the last to the first, blue first, filled up to four bytes."""
    height, width = pixels.shape[:2]
    rows = [row[:, ::-1].tobytes() for row in pixels[::-1]]
    body = b"".join(row + bytes(-len(row) % 4) for row in rows)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body


def jpeg(grey: int) -> bytes:
    """8×8 pixels of one grey, 192 to 255: a single coefficient, grey - 128, of seven bits."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    one_code = bytes([1] + 15 * [0])  # the only symbol has the code 0
    bits = f"0{grey - 128:07b}0".ljust(16, "1")
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, bytes([0] + 64 * [8])),  # 8 × 8 pixels / 8 = 8 units of grey
            segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 1) + bytes([1, 0x11, 0])),
            segment(0xC4, bytes([0x00]) + one_code + bytes([7])),
            segment(0xC4, bytes([0x10]) + one_code + bytes([0])),
            segment(0xDA, bytes([1, 1, 0x00, 0, 63, 0])),
            int(bits, 2).to_bytes(2, "big"),
            b"\xff\xd9",
        ]
    )


def webp(width: int, height: int, rgb: tuple[int, int, int]) -> bytes:
    """Lossless WebP of one colour: every prefix code has one symbol, so pixels take no bits."""
    red, green, blue = rgb
    bits = f"{width - 1:014b}"[::-1] + f"{height - 1:014b}"[::-1] + "0" + "000"  # no alpha, version
    bits += "000"  # no transform, no colour cache, one group of prefix codes
    for symbol in (green, red, blue, 255):
        bits += "101" + f"{symbol:08b}"[::-1]
    bits += "1000"  # distances: the symbol 0
    bits += "0" * (-len(bits) % 8)
    body = b"\x2f" + bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
