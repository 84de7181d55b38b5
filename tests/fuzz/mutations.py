"""Changes of files: of their bytes, of numbers and lines in them, of JSON and TOML values, of what stands in their place.

All is drawn from one generator, so that a number gives the same input again. Knows nothing of who reads the files.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import tomli_w

from tests.fuzz.files import Entry, Files, Folder, Link, Pipe

NUMBERS = (
    *("0", "-1", "1", "2", "255", "65536", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808"),
    *("1000000000000", "1e308", "1e999", "-1e999", "NaN", "Infinity", "nan", "inf", "0x" + "f" * 4000, "9" * 5000),
    *("0.0", "-0.0", "1e-320", "true", "null", '"7"', "[]", "{}"),
)
TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\r",
        b"\n",
        b'"',
        b"'",
        b"\\",
        b"\t",
        b",",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b"=",
        b".",
        b"../",
        b"/etc/passwd",
        b"\\ud800",
        b"\x1b[2J",
        "\u2028".encode(),
        b"#",
        b"[[",
        b'"""',
        b"%s",
        b"{0}",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"a." * 3000, b"a" * 140_000, b"\t" * 5000, b'"' * 999, b"-" * 99, b" " * 9999),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        3,
        10**6,
        10**9,
        10**12,
        2**31,
        2**63 - 1,
        2**64,
        10**400,
        0.0,
        -0.5,
        1e308,
        1e-320,
    ),
    *(
        float("nan"),
        float("inf"),
        "",
        "a",
        "../x",
        "/etc/passwd",
        "\0",
        "\x1b[2J",
        "\ud800",
        "a" * 5000,
        "é\u2028",
        "nan",
    ),
    *(
        [],
        {},
        [[]],
        [0],
        ["a", "a"],
        [None],
        {"": 0},
        {"a": {"a": {}}},
        [1, "a", None, {}],
        "~nobody-at-all/x",
        "hf:a/b:c",
    ),
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_PLACES: tuple[Entry, ...] = (b"", b"\0" * 4096, Folder(), Pipe(), Link("/etc/hostname"), Link("../outside/secret"))
_PLACES += (Link("."), Link("nowhere"), Link("/dev/zero"))


def mutated(files: Files, others: Sequence[Files], draw: random.Random) -> Files:
    """`files` with one to four changes; pieces of `others` may get into them."""
    found = dict(files)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        name = draw.choice(sorted(found)) if found else ""
        entry = found.get(name)
        if not isinstance(entry, bytes) or draw.random() < 0.04:
            _misplace(found, name, draw)
        else:
            found[name] = _changed(name, entry, others, draw)
    return found


def _misplace(files: Files, name: str, draw: random.Random) -> None:
    """Something else in a file's place, nothing at all, or two files in each other's place."""
    if draw.random() < 0.3:
        files.pop(name, None)
    elif draw.random() < 0.2 and files:
        other = draw.choice(sorted(files))
        files[name], files[other] = files[other], files.get(name, b"")
    elif name:
        files[name] = draw.choice(_PLACES)


def _changed(name: str, content: bytes, others: Sequence[Files], draw: random.Random) -> bytes:
    if name.endswith(".safetensors") and draw.random() < 0.7:
        return _header_changed(content, draw)
    if name.endswith(".json") and draw.random() < 0.7:
        return _json_changed(content, draw)
    if name.endswith(".toml") and draw.random() < 0.7:
        return _toml_changed(content, draw)
    if draw.random() < 0.1:
        return _spliced(name, content, others, draw)
    return draw.choice(_BYTES)(content, draw)


def _flipped(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(min(len(found), draw.choice((1, 1, 2, 8, 64)))):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _cut(content: bytes, draw: random.Random) -> bytes:
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:begin] + (b"" if draw.random() < 0.4 else content[end:])


def _inserted(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    piece = draw.choice(TOKENS) if draw.random() < 0.7 else draw.randbytes(draw.choice((1, 4, 40)))
    return content[:at] + piece * draw.choice((1, 1, 1, 3)) + content[at:]


def _repeated(content: bytes, draw: random.Random) -> bytes:
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[begin : min(end, begin + 10_000)] * draw.choice((1, 2, 5)) + content[end:]


def _renumbered(content: bytes, draw: random.Random) -> bytes:
    found = list(_NUMBER.finditer(content[:1_000_000]))
    if not found:
        return _inserted(content, draw)
    place = draw.choice(found)
    return content[: place.start()] + draw.choice(NUMBERS).encode() + content[place.end() :]


def _lines_moved(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    if draw.random() < 0.5:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        lines.insert(one, lines[other])
    return b"\n".join(lines)


def _spliced(name: str, content: bytes, others: Sequence[Files], draw: random.Random) -> bytes:
    donors = [entry for files in others for key, entry in files.items() if key.endswith(name[-5:])]
    donor = draw.choice([entry for entry in donors if isinstance(entry, bytes)] or [content])
    return content[: draw.randrange(len(content) + 1)] + donor[draw.randrange(len(donor) + 1) :]


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flipped, _cut, _inserted, _repeated, _renumbered, _renumbered, _lines_moved),
)


def _json_changed(content: bytes, draw: random.Random) -> bytes:
    try:
        text = json.dumps(value_changed(json.loads(content), draw), ensure_ascii=draw.random() < 0.9)
    except (ValueError, RecursionError):  # no JSON any more, or so deep by now that Python cannot write it
        return _inserted(content, draw)
    if draw.random() < 0.1:
        text = re.sub(r'("[^"]*": [^,{}\[\]]*),', r"\1, \1,", text, count=1)  # a key twice
    return text.encode(errors="surrogatepass")


def _toml_changed(content: bytes, draw: random.Random) -> bytes:
    try:
        return tomli_w.dumps(value_changed(tomllib.loads(content.decode()), draw)).encode(errors="surrogatepass")
    except (
        ValueError,
        RecursionError,
        TypeError,
        AttributeError,
    ):  # what was drawn may be no TOML: null, a list at the top
        return _inserted(content, draw)


def _header_changed(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with another header, whose length is right."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.dumps(value_changed(json.loads(content[8 : 8 + length]), draw)).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return _flipped(content, draw)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def value_changed(value: Any, draw: random.Random) -> Any:
    """A JSON or TOML value with one place in it changed, taken away, renamed, or put elsewhere too."""
    found = deepcopy(value)
    places = list(_places(found))
    if not places:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    turn = draw.random()
    if turn < 0.2:
        del holder[key]
    elif turn < 0.3 and isinstance(holder, dict):
        holder[draw.choice(("", "kind", "..", "a/b", "\x1b[2J", "é", "A" * 300, f"{key}_"))] = holder.pop(key)
    elif turn < 0.4:
        holder[key] = deepcopy(draw.choice(places)[0])
    elif turn < 0.45 and isinstance(holder, list):
        holder.extend(deepcopy(holder[key]) for _ in range(draw.choice((1, 100, 3000))))
    elif turn < 0.5:
        holder[key] = _nested(draw.choice((10, 70, 400)))
    else:
        holder[key] = deepcopy(draw.choice(VALUES))
    return found


def _places(value: Any) -> Any:
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            waiting.append(holder[key])


def _nested(depth: int) -> Any:
    value: Any = 0
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value
