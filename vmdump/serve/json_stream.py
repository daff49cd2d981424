"""JSON values out of a stream of bytes, as QEMU's QMP server takes them.

A value may come in many pieces, and many in one; nothing has to stand between them. What is wrong gives one
error, and then everything is skipped up to a line's end, a bracket, a comma, a colon or a byte that no text
has. All of this, and the texts of the errors, was seen of QEMU 7.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmdump.serve.json_values import JsonError, parse, readable

__all__ = ["MAX_MESSAGE", "JsonStream", "Value"]

MAX_MESSAGE = 64 << 20
"""Bytes of a message, without the spaces between its tokens."""
# QEMU's own less the few that a message gets on its way: QEMU must never refuse what was taken here.
_MAX_TOKENS = (2 << 20) - 8
_MAX_NESTING = 1024
_MAX_WORD = 64 << 10
"""Of a number or keyword, which is looked at anew whenever more of it comes."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING_REST = {
    quote: re.compile(rb"(?:[^%s\\\x00-\x1f\xfe\xff]++|\\[\x20-\xfd])*+" % quote) for quote in (b'"', b"'")
}
_WORD = re.compile(rb"[-0-9a-z][-+.0-9a-zA-Z]*+")
"""No number or keyword reaches further. It has ended when another byte has come."""
# 0e5 is three tokens to QEMU, and 0.0e5 is one.
_TOKEN = re.compile(rb"[a-z]+|-?(?:0(?=[^.])|(?:0\.[0-9]+|[1-9][0-9]*(?:\.[0-9]+)?)(?:[eE][-+]?[0-9]+)?)")
_NO_NUMBER = re.compile(
    rb"-?0[0-9]|-[^0-9]|-?(?:0|[1-9][0-9]*)\.[^0-9]"
    rb"|-?(?:0\.[0-9]+|[1-9][0-9]*(?:\.[0-9]+)?)[eE](?:[^-+0-9]|[-+][^0-9])",
    re.DOTALL,
)
_SKIPPED = re.compile(rb"[\t\x20-+\x2d-9;-Z\\^-z|~-\xfd]*+")


@dataclass(frozen=True)
class Value:
    """What came: a value, or why it is none.

    Attributes
    ----------
    value : object
        Where there is no error.
    error : str
        QEMU's text; empty for a value.
    """

    value: object = None
    error: str = ""


class JsonStream:
    """The values of one connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._string = bytearray()
        self._quote = b""
        self._skipping = False
        self._forget()

    def _forget(self) -> None:
        """Begin a message."""
        self._tokens: list[bytes] = []
        self._size = self._braces = self._brackets = 0

    def feed(self, data: bytes) -> list[Value]:
        """Take the next bytes; give the values and errors that end in them."""
        data = self._rest + data
        self._rest = b""
        found: list[Value] = []
        position = 0
        while position < len(data):
            if self._skipping:
                position = _end(_SKIPPED, data, position)
                self._skipping = position == len(data)
            elif self._quote:
                position = self._go_on_with_string(data, position, found)
            else:
                position = self._begin_token(data, position, found)
        return found

    def _begin_token(self, data: bytes, position: int, found: list[Value]) -> int:
        position = _end(_SPACE, data, position)
        first = data[position : position + 1]
        if not first or first in b"{}[]:,":
            if first:
                self._take(first, found)
            return position + 1
        if first in _STRING_REST:
            self._quote = first
            self._string += first
            return position + 1
        word = _WORD.match(data, position)
        if word is None:
            return self._stray(data, position, position + 1, found)
        if word.end() == len(data) and word.end() - position <= _MAX_WORD:
            self._rest = data[position:]
            return len(data)
        if word.end() - position > _MAX_WORD:
            self._refuse("JSON token size limit exceeded", found)
            self._skipping = True
            return word.end()
        wrong = _NO_NUMBER.match(data, position)
        if wrong is not None:
            return self._stray(data, position, wrong.end(), found)
        token = _TOKEN.match(data, position)
        assert token is not None
        self._take(token[0], found)
        return token.end()

    def _go_on_with_string(self, data: bytes, position: int, found: list[Value]) -> int:
        end = _end(_STRING_REST[self._quote], data, position)
        self._string += data[position:end]
        if len(self._string) > MAX_MESSAGE:
            self._end_string()
            self._refuse("JSON token size limit exceeded", found)
            self._skipping = True
            return end
        next_ones = data[end : end + 2]
        if not next_ones or next_ones == b"\\":
            self._rest = next_ones
            return len(data)
        if next_ones[:1] == self._quote:
            self._string += self._quote
            self._take(self._end_string(), found)
            return end + 1
        wrong = next_ones if next_ones[:1] == b"\\" else next_ones[:1]
        text = self._end_string() + wrong
        self._stray(text, 0, len(text), found)
        return end + len(wrong)

    def _end_string(self) -> bytes:
        string, self._quote = bytes(self._string), b""
        self._string.clear()
        return string

    def _stray(self, data: bytes, begin: int, end: int, found: list[Value]) -> int:
        # A C string: it ends at a zero.
        text = readable(data[begin:end].partition(b"\0")[0])
        self._refuse(f"JSON parse error, stray '{text}'", found)
        self._skipping = True
        return end

    def _refuse(self, error: str, found: list[Value]) -> None:
        self._forget()
        found.append(Value(error=error))

    def _take(self, token: bytes, found: list[Value]) -> None:
        """Add a token to the message, which may end with it."""
        self._braces += {b"{": 1, b"}": -1}.get(token, 0)
        self._brackets += {b"[": 1, b"]": -1}.get(token, 0)
        self._size += len(token)
        if self._size >= MAX_MESSAGE:
            self._refuse("JSON token size limit exceeded", found)
        elif len(self._tokens) >= _MAX_TOKENS:
            self._refuse("JSON token count limit exceeded", found)
        elif self._braces + self._brackets > _MAX_NESTING:
            self._refuse("JSON nesting depth limit exceeded", found)
        else:
            self._tokens.append(token)
            if min(self._braces, self._brackets) < 0 or not (self._braces or self._brackets):
                tokens = self._tokens
                self._forget()
                try:
                    found.append(Value(parse(tokens)))
                except JsonError as error:
                    found.append(Value(error=f"JSON parse error, {error}"))


def _end(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Give the end of a match, which may be empty, but cannot fail."""
    match = pattern.match(data, position)
    assert match is not None
    return match.end()
