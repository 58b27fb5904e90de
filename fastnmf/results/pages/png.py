"""Pictures as PNG files in text, so that a page needs no other file; without any library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

_COLOURS = {1: 0, 3: 2, 4: 6}


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels (h, w, 1, 3 or 4), uint8."""
    h, w, channels = pixels.shape
    lines = np.zeros((h, 1 + w * channels), np.uint8)
    lines[:, 1:] = pixels.reshape(h, -1)
    head = struct.pack(">IIBBBBB", w, h, 8, _COLOURS[channels], 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def data_url(pixels: np.ndarray) -> str:
    """The PNG file as the address of an img element."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode('ascii')}"


def _chunk(name: bytes, content: bytes) -> bytes:
    size, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(name + content))
    return size + name + content + check
