from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from octavo.bench.sse import SSEParser


def parse(chunks: list[bytes]) -> list[bytes]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        # The examples of the standard's section on server-sent events.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\n", [b"first event"]),
        (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
        (b"data: cut off", []),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [b"a", b"b", b"c"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"event: x\nretry: 5\n\n", []),
        (b"data : a\n\n", []),
    ],
)
def test_examples_of_the_standard(stream: bytes, events: list[bytes]) -> None:
    assert parse([stream]) == events


lines = st.lists(
    st.one_of(
        st.sampled_from([b"", b"data", b"data:", b": ping", b"event: x", b"data: [DONE]"]),
        st.text(
            st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12
        ).map(lambda text: b"data: " + text.encode()),
    ),
    max_size=20,
)


@given(lines, st.data())
def test_every_chunking_gives_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    ends = [data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"])) for _ in parts]
    stream = b"".join(part + end for part, end in zip(parts, ends, strict=True))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    bounds = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(bounds)]
    assert parse(chunks) == parse([stream])
    assert parse([stream[i : i + 1] for i in range(len(stream))]) == parse([stream])


@given(lines)
def test_agrees_with_the_openai_client(parts: list[bytes]) -> None:
    # The client makes an event of a lone `event:` line, which the standard does not.
    stream = b"".join(part + b"\n" for part in parts if not part.startswith(b"event"))
    theirs = [event.data.encode() for event in SSEDecoder().iter_bytes(iter([stream]))]
    assert parse([stream]) == theirs
