"""Mutations of valid bytes. Checksums can be corrected, so that the damage gets past them."""

import struct
import zlib
from collections.abc import Callable
from random import Random

Change = Callable[[bytearray, Random], None]

TOKENS = [
    *b'{}[]",:\\',
    b'"text":',
    b'"request_id":',
    b'"random_seed":',
    b'"input_image_base64":',
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0.0",
    b"9" * 400,
    b"[" * 2000,
    b"\\u0000",
    b"\\ud800",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"data:,",
    b"====",
]
EXTREMES = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


def mutated(data: bytes, random: Random) -> bytes:
    """The same bytes after a few changes."""
    changing = bytearray(data)
    for _ in range(random.randint(1, 4)):
        random.choice(CHANGES)(changing, random)
    return repaired(bytes(changing)) if random.random() < 0.7 else bytes(changing)


def repaired(data: bytes) -> bytes:
    """A PNG with right checksums, so that damage reaches what lies behind them; anything else as it is."""
    if not data.startswith(b"\x89PNG"):
        return data
    whole = bytearray(data)
    for start, end in parts(data):
        if end - start >= 12:
            whole[end - 4 : end] = struct.pack(">I", zlib.crc32(whole[start + 4 : end - 4]))
    return bytes(whole)


def parts(data: bytes) -> list[tuple[int, int]]:
    """Where the chunks or segments of an image file begin and end; of other bytes, the whole."""
    if data.startswith(b"\x89PNG"):
        return _walk(data, 8, lambda at: 12 + struct.unpack_from(">I", data, at)[0])
    if data.startswith(b"RIFF"):
        return _walk(data, 12, lambda at: 8 + (struct.unpack_from("<I", data, at + 4)[0] + 1) // 2 * 2)
    if data.startswith(b"\xff\xd8"):
        return _walk(data, 2, lambda at: 2 + struct.unpack_from(">H", data, at + 2)[0])
    return [(0, len(data))]


def _walk(data: bytes, at: int, length: Callable[[int], int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while at + 8 <= len(data) and len(found) < 100:
        end = min(at + length(at), len(data))
        found.append((at, end))
        at = end
    return found or [(0, len(data))]


def _flip(data: bytearray, random: Random) -> None:
    for _ in range(random.randint(1, 8)):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random) -> None:
    """An extreme number somewhere: often it hits a length, a size or a count."""
    width = random.choice((1, 2, 3, 4))
    number = (random.choice(EXTREMES) & (1 << 8 * width) - 1).to_bytes(width, random.choice(("big", "little")))
    start, end = random.choice(parts(bytes(data)))
    at = random.randint(start, max(start, min(end, start + 32)))
    data[at : at + width] = number


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randint(0, len(data)) :]


def _remove(data: bytearray, random: Random) -> None:
    start, end = random.choice(parts(bytes(data)))
    del data[start:end]


def _repeat(data: bytearray, random: Random) -> None:
    start, end = random.choice(parts(bytes(data)))
    data[start:start] = data[start:end] * min(random.choice((1, 2, 50)), 1 + 100_000 // (end - start + 1))


def _move(data: bytearray, random: Random) -> None:
    start, end = random.choice(parts(bytes(data)))
    part = data[start:end]
    del data[start:end]
    to = random.choice(parts(bytes(data)))[0]
    data[to:to] = part


def _insert(data: bytearray, random: Random) -> None:
    token = random.choice(TOKENS)
    at = random.randint(0, len(data))
    data[at:at] = token if isinstance(token, bytes) else bytes([token])


CHANGES: list[Change] = [_flip, _overwrite, _overwrite, _cut, _remove, _repeat, _move, _insert]
