"""Damage to valid files, on three levels: bytes, JSON values, and the parts of an archive, image or pickle.

Every function takes a `random.Random`, which may be one of hypothesis, and returns the damaged content.
"""

import copy
import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

#: Numbers at the edges of the types that formats use.
NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
)

#: Text that could move a cursor, break a line, leave a folder, or be a formula or a path of the system.
TEXTS = (
    "", " ", "\x1b[2J\x1b[31mred", "two\nlines", "tab\tbed", "\r", "\0", "\x9b31m", "\u202eleft", "\u2028", "=1+1",
    "@x", "../../x", "/etc/passwd", "/dev/zero", "nan", "NaN", "null", "x" * 20_000, "é" * 300, "\U0001f33b",
    "__class__", "{0}", "%s", "CON", ".", "..", "params/", "a/b/c",
)  # fmt: skip

#: Values of JSON that a field may hold in place of its own.
VALUES = (
    None, True, False, -1, 0, 1, 2, 10, 1000, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308,
    1e-320, [], [[]], [0] * 1000, [None], [1, "1"], {}, {"": None}, {"a": {"b": [1]}},
)  # fmt: skip


def number_bytes(rng: Random) -> bytes:
    """Return a number of 1 to 8 bytes in either byte order."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.getrandbits(64)
    return (value % 256**size).to_bytes(size, rng.choice(("little", "big")))


def damage_bytes(rng: Random, data: bytes) -> bytes:
    """Flip bits, overwrite, insert, delete, repeat and cut off, one to eight times."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        place, kind = rng.randrange(len(out)), rng.randrange(8)
        if kind <= 1:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[place] = rng.randrange(256)
        elif kind == 3:
            raw = number_bytes(rng)
            out[place : place + len(raw)] = raw
        elif kind == 4:
            del out[place : place + rng.randrange(1, 24)]
        elif kind == 5:
            source = rng.randrange(len(out))
            out[place:place] = out[source : source + rng.randrange(1, 80)] * rng.choice((1, 1, 2, 30))
        elif kind == 6:
            source = rng.randrange(len(out))
            size = rng.randrange(1, 40)
            out[place : place + size] = out[source : source + size]
        elif rng.random() < 0.5:
            del out[place:]
    return bytes(out)


# --- JSON -------------------------------------------------------------------------------------------------------------


def any_value(rng: Random) -> Any:
    """Return a JSON value that is out of place."""
    kind = rng.random()
    if kind < 0.5:
        return copy.deepcopy(rng.choice(VALUES))
    if kind < 0.85:
        return rng.choice(TEXTS)
    if kind < 0.92:
        return [copy.deepcopy(rng.choice(VALUES)) for _ in range(rng.randrange(5))]
    nested: Any = 0
    for _ in range(rng.choice((5, 40, 200))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside a JSON value."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, part in list(items):
            places.append((node, key))
            waiting.append(part)
    return places


def damage_json_value(rng: Random, value: Any) -> Any:
    """Replace, delete, repeat, move or rename one to three values inside a JSON value, which is copied."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return any_value(rng)
        # Values near the root are as likely as all of the many below them.
        near = [place for place in places if place[0] is value]
        container, key = rng.choice(near if rng.random() < 0.4 and near else places)
        kind = rng.randrange(7)
        if kind <= 2:
            container[key] = any_value(rng)
        elif kind == 3:
            del container[key]
        elif kind == 4:
            other, place = rng.choice(places)
            container[key] = json.loads(json.dumps(other[place])) if _holds(other, place) else None
        elif kind == 5 and isinstance(container, dict):
            container[rng.choice(TEXTS)] = container.pop(key)
        elif isinstance(container, list):
            container.insert(rng.randrange(len(container) + 1), any_value(rng))
        else:
            container[rng.choice(TEXTS)] = any_value(rng)
        if rng.random() < 0.02:
            return any_value(rng)
    return value


def _holds(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def json_bytes(rng: Random, value: Any) -> bytes:
    """Write JSON as other programs do, and sometimes as none should: NaN, repeated keys, endless nesting, no end."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, 1)))
    kind = rng.random()
    if kind < 0.04:
        text = text.replace(
            rng.choice("0123456789"), rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000)), 1
        )
    elif kind < 0.06:
        text = rng.choice(('{"a":', "[")) * rng.choice((60, 100_000)) + text
    elif kind < 0.08 and text.startswith("{"):
        text = "{" + text[1:-1] + ("," if len(text) > 2 else "") + text[1:]
    elif kind < 0.1:
        text = rng.choice(("\ufeff", "\x00", " " * 10_000)) + text
    elif kind < 0.12:
        return text.encode("utf-16", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def damage_json(rng: Random, data: bytes) -> bytes:
    """Damage the values of a JSON text, or now and then its bytes."""
    if rng.random() < 0.15:
        return damage_bytes(rng, data)
    return json_bytes(rng, damage_json_value(rng, json.loads(data)))


def damage_json_lines(rng: Random, data: bytes) -> bytes:
    """Damage a line of JSON Lines, or the lines' order and number."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = damage_json(rng, lines[place]).replace(b"\n", b" ")
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return rng.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)


def damage_table(rng: Random, data: bytes) -> bytes:
    """Damage a table of separated cells: cells, columns, separators, quotes and line ends."""
    if rng.random() < 0.25:
        return damage_bytes(rng, data)
    text = data.decode()
    separator = max(",;\t|", key=text.count)
    rows = [line.split(separator) for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        kind = rng.randrange(6)
        if kind <= 1 and row:
            row[rng.randrange(len(row))] = str(any_value(rng))[:30_000] if rng.random() < 0.3 else rng.choice(TEXTS)
        elif kind == 2 and row:
            row.pop(rng.randrange(len(row)))
        elif kind == 3:
            row.insert(rng.randrange(len(row) + 1), rng.choice(TEXTS))
        elif kind == 4 and row:
            row[rng.randrange(len(row))] += rng.choice(('"', '"' * 3, "'", "\n", "\0", separator))
        else:
            rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
    joined = rng.choice((separator, separator, separator, ",", "\t"))
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join(joined.join(row) for row in rows)
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16")), "surrogatepass")


# --- archives ---------------------------------------------------------------------------------------------------------


def damage_zip(
    rng: Random, data: bytes, damage_member: Callable[[Random, str, bytes], bytes], stored: bool = True
) -> bytes:
    """Damage a member of a zip archive, whose checksums are then right again, or the archive's structure or bytes."""
    if rng.random() < 0.2:
        return damage_bytes(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = rng.randrange(len(members))
    kind = rng.random()
    if kind < 0.75:
        name, content = members[place]
        members[place] = name, damage_member(rng, name, content)
    elif kind < 0.85:
        members[place] = rng.choice((*TEXTS[1:], members[0][0])).replace("\0", "0")[:60_000] or "x", members[place][1]
    elif kind < 0.92:
        members.pop(place)
    else:
        members.append((members[place][0], bytes(rng.choice((0, 10, 10**6)))))
    method = zipfile.ZIP_STORED if stored or rng.random() < 0.5 else zipfile.ZIP_DEFLATED
    if rng.random() < 0.05:
        method = zipfile.ZIP_DEFLATED
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of repeated names
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, content in members:
                archive.writestr(name, content)
    return damage_bytes(rng, out.getvalue()) if rng.random() < 0.05 else out.getvalue()


def damage_gzip(rng: Random, data: bytes, damage: Callable[[Random, bytes], bytes]) -> bytes:
    """Damage the content of a gzip file, whose checksum is then right again, or its members or bytes."""
    kind = rng.random()
    if kind < 0.2:
        return damage_bytes(rng, data)
    content = gzip.decompress(data)
    if kind < 0.8:
        return gzip.compress(damage(rng, content), 1, mtime=0)
    if kind < 0.9:
        return data + gzip.compress(bytes(rng.choice((0, 1, 10**6))), 1, mtime=0) * rng.choice((1, 3))
    return gzip.compress(content[:20] + bytes(rng.choice((10**5, 3 * 10**6))), 9, mtime=0)


TAR_FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1),
              "link": (157, 100), "magic": (257, 8), "prefix": (345, 155)}  # fmt: skip


def damage_tar(rng: Random, data: bytes) -> bytes:
    """Damage a header of a tar file, whose checksum is then right again, or its bytes."""
    if rng.random() < 0.2:
        return damage_bytes(rng, data)
    out = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        headers = [member.offset for member in archive.getmembers()]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.choice(headers)
        field = rng.choice((*TAR_FIELDS, "size", "size", "type"))
        start, length = TAR_FIELDS[field]
        if field in ("size", "mtime", "mode"):
            value = rng.choice((*NUMBERS, -1, -512, -1024, 511, 512, 513, 2**33))
            octal = b"%o" % max(value, 0)
            binary = (b"\xff" if value < 0 else b"\x80") + (value % 256 ** (length - 1)).to_bytes(length - 1, "big")
            new = octal.rjust(length - 1, b"0") + b"\0" if rng.random() < 0.5 and len(octal) < length else binary
        elif field == "type":
            new = rng.choice(
                (b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S", b"D", b"?")
            )
        else:
            new = rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:length].ljust(length, b"\0")
        out[place + start : place + start + length] = new[:length]
        out[place + 148 : place + 156] = b" " * 8
        out[place + 148 : place + 156] = b"%06o\0 " % sum(out[place : place + 512])
        if rng.random() < 0.1:
            out[place:place] = out[place : place + 512] * rng.choice((1, 3, 500))
            break
    return bytes(out[: rng.randrange(len(out))]) if rng.random() < 0.1 else bytes(out)


# --- images -----------------------------------------------------------------------------------------------------------


def damage_png(rng: Random, data: bytes) -> bytes:
    """Damage the chunks of a PNG, whose checksums are then right again, or its bytes."""
    if rng.random() < 0.3:
        return damage_bytes(rng, data)
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        index, kind = rng.randrange(len(chunks)), rng.randrange(6)
        name, content = chunks[index]
        if kind == 0 and len(chunks[0][1]) == 13:
            header = bytearray(chunks[0][1])
            field = rng.randrange(7)
            if field < 2:  # width or height
                header[4 * field : 4 * field + 4] = struct.pack(">I", rng.choice((*NUMBERS[:13], 3000, 13_000, 20_000)))
            else:  # depth, colour type, compression, filter, interlacing
                header[6 + field] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = chunks[0][0], bytes(header)
        elif kind == 1:
            chunks[index] = name, damage_bytes(rng, content) if content else number_bytes(rng)
        elif kind == 2:
            chunks.insert(rng.randrange(1, len(chunks) + 1), (name, content))
        elif kind == 3:
            chunks.pop(index)
            if not chunks:
                return data[:8]
        else:
            bomb = zlib.compress(bytes(rng.choice((100, 10**5, 3 * 10**6))), 9)
            extra = rng.choice((
                (b"tEXt", b"key\0" + rng.choice(TEXTS).encode("utf-8", "replace")), (b"zTXt", b"key\0\0" + bomb),
                (b"iTXt", b"key\0\1\0\0\0" + bomb), (b"iCCP", b"name\0\0" + bomb),
                (b"PLTE", bytes(rng.choice((0, 2, 3, 900)))), (b"tRNS", bytes(rng.choice((0, 1, 2, 6, 300)))),
                (b"eXIf", b"II*\0" + number_bytes(rng) * 20),
                (b"acTL", number_bytes(rng) * 2), (b"fcTL", number_bytes(rng) * 5), (b"fdAT", bytes(8)), (b"IEND", b""),
                (b"cICP", b"\1" * 4), (b"gAMA", number_bytes(rng)), (b"pHYs", bytes(9)), (b"IDAT", bomb),
                (b"abcd", b"x"),
            ))  # fmt: skip
            chunks.insert(rng.randrange(1, len(chunks) + 1), extra)
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return data[:8] + body


# --- pickles ----------------------------------------------------------------------------------------------------------

OPCODES = [bytes([code]) for code in b"(.012FIJKLMNPQRSTUVXabcdeghijloprstu]})q" + bytes(range(0x80, 0x99)) + b"BC"]


def hostile_pickle(rng: Random, canary: str) -> bytes:
    """Return opcodes that would create the file `canary`, if they were executed."""
    name = canary.encode()
    text = b"X" + struct.pack("<I", len(name)) + name
    call = rng.choice((b"os\nsystem", b"posix\nsystem", b"builtins\nexec", b"builtins\neval", b"subprocess\nPopen",
                       b"os\nmkdir", b"pathlib\nPath.touch", b"shutil\nrmtree", b"numpy\nsave", b"torch\nload",
                       b"runpy\n_run_code", b"zoo.files\nremove_folder", b"builtins\ngetattr"))  # fmt: skip
    if rng.random() < 0.3:
        module, attribute = call.split(b"\n")
        pair = b"".join(b"\x8c" + bytes([len(part)]) + part for part in (module, attribute))
        return pair + b"\x93" + text + b"\x85R" + rng.choice((b"", b"0"))
    form = rng.choice((b"c%s\n%s\x85R", b"(%s" + b"i%s\n", b"c%s\n)\x81%sb"))
    if form.startswith(b"("):
        return b"(" + text + b"i" + call + b"\n"
    return form % (call, text) + rng.choice((b"", b"0"))


def damage_pickle(rng: Random, data: bytes, canary: str = "canary") -> bytes:
    """Damage a pickle by its bytes and by opcodes that are inserted, hostile ones among them."""
    out = damage_bytes(rng, data) if rng.random() < 0.6 else data
    if rng.random() < 0.6:
        place = rng.randrange(len(out) + 1)
        opcodes = b"".join(rng.choice(OPCODES) * rng.choice((1, 1, 3, 50)) for _ in range(rng.randrange(1, 4)))
        out = out[:place] + opcodes + out[place:]
    if rng.random() < 0.3:
        place = rng.choice((2, max(len(out) - 1, 0), rng.randrange(len(out) + 1)))
        out = out[:place] + hostile_pickle(rng, canary) + out[place:]
    return out


def pick(rng: Random, seeds: Sequence[Any]) -> Any:
    """Return one of the seeds, the first one most often."""
    return seeds[0] if rng.random() < 0.5 else rng.choice(seeds)
