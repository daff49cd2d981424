"""JSON out of a stream: however it is cut into pieces, the same values and errors come of it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from helpers.qmp_client import start_qemu
from hypothesis import given
from hypothesis import strategies as st

from vmdump.serve import json_stream
from vmdump.serve.json_stream import MAX_MESSAGE, JsonStream, Value
from vmdump.serve.json_values import write

NOT_CHARACTERS = [0xFDD0 + number for number in range(32)] + [
    (plane << 16) + last for plane in range(17) for last in (0xFFFE, 0xFFFF)
]
FEW = 1 << 10
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=map(chr, NOT_CHARACTERS)))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)
PIECES = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"a"', b"'b'", b'"', b"'", b"\\", b'"\\u', b"00e9", b'"\\n"'),
    *(b"1", b"-", b"0", b".5", b"e5", b"E", b"true", b"null", b"nul", b"x", b"@", b"A", b"%"),
    *(b" ", b"\n", b"\t", b"\r", b"\x00", b"\x1b", b"\x7f", b"\xff", b"\xfe", b"\xc3\xa9", b"\xc3"),
    *(b'"id":', b'{"id":1}', b'{"id":{"a":[1,{}]}}', b'{"a":1,"a":2}', b'"\\ud83d\\ude00"', b'"\\ud800"'),
]
GARBAGE = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | st.binary(max_size=40)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut at those places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[begin:end] for begin, end in pairwise(places)]


def fed(pieces: list[bytes]) -> list[Value]:
    stream = JsonStream()
    return [value for piece in pieces for value in stream.feed(piece)]


@given(st.lists(JSON), st.lists(st.integers(0, 10000)), st.sampled_from([b"", b" ", b"\r\n"]), st.booleans())
def test_any_values_in_any_pieces(
    values: list[Any], cuts: list[int], between: bytes, ascii_only: bool
) -> None:
    # Two numbers need something between them; all else does not.
    data = b"".join(
        json.dumps(value, ensure_ascii=ascii_only).encode()
        + (between or b" " * (not isinstance(value, str | list | dict)))
        for value in values
    )
    assert [value.value for value in fed(cut(data, cuts))] == values


@given(st.lists(GARBAGE, max_size=6).map(b"".join), st.lists(st.integers(0, 1000)))
def test_garbage_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    assert fed(cut(data, cuts)) == fed([data])
    # Whatever it was: from here on, all is as it should be.
    assert fed([*cut(data, cuts), b'\x1b\n{"id": 1}'])[-1] == Value({"id": 1})


@given(JSON)
def test_what_is_written_is_json(value: Any) -> None:
    assert json.loads(write(value)) == value


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A QEMU without a machine."""
    with start_qemu(tmp_path_factory.mktemp("qemu"), machine="none") as started:
        yield started


def answers(client: socket.socket, data: bytes) -> list[Any]:
    """What QEMU answers to that, up to the answer to a message that it understands."""
    client.sendall(data + b'\x1b\n{"id": "end"}')
    received = b""
    while b'"id": "end"' not in received:
        received += client.recv(65536)
    return [json.loads(line) for line in received.split(b"\r\n") if line]


def as_qemu_says(values: list[Value]) -> list[Any]:
    found = []
    for value in values:
        if value.error:
            found.append(value.error)
        elif not isinstance(value.value, dict):
            found.append("QMP input must be a JSON object")
        else:
            found.append(value.value.get("id", "?"))
    return found


def test_qemu_says_the_same(qemu: Any) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(qemu.path)
        client.recv(65536)

        @given(GARBAGE)
        def compare(data: bytes) -> None:
            told = [
                message["id"]
                if "id" in message
                else message["error"]["desc"]
                if "JSON" in message["error"]["desc"]
                else "?"
                for message in answers(client, data)
            ]
            assert as_qemu_says(fed([data, b'\x1b\n{"id": "end"}'])) == told

        compare()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"[" * 1025, "JSON nesting depth limit exceeded"),
        (b'"' + b"x" * MAX_MESSAGE + b'"', "JSON token size limit exceeded"),
        (b"1" * MAX_MESSAGE, "JSON token size limit exceeded"),
        (b"[" + b'"' + b"x" * (MAX_MESSAGE - 2) + b'"]', "JSON token size limit exceeded"),
        (b"[" + b"1," * FEW + b"1]", "JSON token count limit exceeded"),
    ],
    ids=["nesting", "string", "number", "message", "tokens"],
)
def test_limits(data: bytes, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "count" in error:  # QEMU's number takes seconds
        monkeypatch.setattr(json_stream, "_MAX_TOKENS", 2 * FEW)
    pieces = [data[begin : begin + 65536] for begin in range(0, len(data), 65536)]
    found = fed([*pieces, b'\x1b\n{"id": 1}'])
    assert found[0] == Value(error=error)
    assert found[-1] == Value({"id": 1})


def test_deep_values_are_taken_and_written() -> None:
    data = b'{"id":' + b"[" * 1023 + b"1" + b"]" * 1023 + b"}"
    (value,) = fed([data])
    assert write(value.value).replace(b" ", b"") == data


def test_long_message_takes_little_more_memory_than_its_bytes() -> None:
    code = (
        "from vmdump.serve.json_stream import JsonStream; s = JsonStream();"
        's.feed(b\'{"a": "\')\n'
        "for _ in range(1 << 11): s.feed(b'x' * 65536)\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 << 10
