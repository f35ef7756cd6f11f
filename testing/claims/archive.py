"""The container of a claim: a zip file of two members in one possible form, so that no bit of it can hide anything.

The members are claim.json and points.safetensors, deflated, with fixed dates. The zip's comment is the SHA-256 of all
bytes before it. A file is accepted only if its members, written again around the same compressed bytes, give that file:
there is no room for other members, other names, gaps or edited headers. The same content compressed otherwise, as other
versions of zlib do, is the same claim: its name is the digest of its content.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from foundations.errors import RunError

NAMES = ("claim.json", "points.safetensors")
MOST_BYTES = 2**31  # of a file and of a member
LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
VERSION, DEFLATED, DATE = 20, 8, 0x21  # zip 2.0; 1980-01-01, the first day there is
DIGEST = 64  # hex digits
# (level, strategy) of zlib: patterns of signs, values that repeat nothing, and what is between. The smallest is kept.
STRATEGIES = ((6, zlib.Z_DEFAULT_STRATEGY), (6, zlib.Z_FILTERED), (6, zlib.Z_HUFFMAN_ONLY))


class Refused(RunError):
    """A file that is no claim in its one form."""


@dataclass(frozen=True)
class Member:
    """A compressed member, and the checksum and length of its content."""

    payload: bytes
    crc: int
    size: int

    @classmethod
    def of(cls, content: bytes) -> Member:
        payloads = []
        for level, strategy in STRATEGIES:
            state = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
            payloads.append(state.compress(content) + state.flush())
        return cls(min(payloads, key=len), zlib.crc32(content), len(content))

    def content(self, most: int) -> bytes:
        """The content; raises Refused before more than `most` bytes were made."""
        if self.size > most:
            raise Refused(f"a member would take {self.size:,} bytes, expected at most {most:,}")
        state = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = state.decompress(self.payload, self.size + 1)
        except zlib.error as error:
            raise Refused(f"a member is damaged: {error}") from error
        if len(content) != self.size or not state.eof or state.unused_data or zlib.crc32(content) != self.crc:
            raise Refused("a member is damaged: its length or its checksum does not fit its content")
        return content


def write(contents: Sequence[bytes]) -> bytes:
    """The file with these contents of the two members."""
    return _joined([Member.of(content) for content in contents])


def read(file: bytes) -> list[Member]:
    """The members of a file, still compressed; raises Refused for every other file."""
    body, told = file[:-DIGEST], file[-DIGEST:]
    if hashlib.sha256(body).hexdigest().encode() != told:
        raise Refused("its last 64 characters are not the SHA-256 of what is before them: damaged, cut short or edited")
    members, place = [], 0
    for name in NAMES:
        header = body[place : place + LOCAL.size]
        if len(header) < LOCAL.size:
            raise Refused(_expected())
        crc, packed, size = LOCAL.unpack(header)[6:9]
        start = place + LOCAL.size + len(name)
        place = start + packed
        members.append(Member(body[start:place], crc, size))
    if _joined(members) != file:
        raise Refused(_expected())
    return members


def _expected() -> str:
    return f"expected the members {' and '.join(NAMES)} and nothing else, as `bundle` writes them"


def _joined(members: Sequence[Member]) -> bytes:
    local, central = b"", b""
    for name, member in zip(NAMES, members, strict=True):
        word = name.encode()
        facts = (0, DEFLATED, 0, DATE, member.crc, len(member.payload), member.size, len(word))
        central += CENTRAL.pack(b"PK\1\2", VERSION, VERSION, *facts, 0, 0, 0, 0, 0, len(local)) + word
        local += LOCAL.pack(b"PK\3\4", VERSION, *facts, 0) + word + member.payload
    count = len(members)
    end = END.pack(b"PK\5\6", 0, 0, count, count, len(central), len(local), DIGEST)
    body = local + central + end
    return body + hashlib.sha256(body).hexdigest().encode()
