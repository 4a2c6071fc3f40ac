"""Range headers: what is asked for, against a blob of a known size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ranges import MAX_RANGES, Span, choose_spans, parse_range
from node.errors import RangeInvalid

ETAG = '"sha256:abc"'


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        pytest.param("bytes=0-9", [(0, 9)], id="a span is both ends included"),
        pytest.param("bytes=0-0", [(0, 0)], id="one byte"),
        pytest.param("bytes=0-", [(0, 99)], id="an open end reaches the last byte"),
        pytest.param("bytes=99-", [(99, 99)], id="the last byte alone"),
        pytest.param("bytes=-5", [(95, 99)], id="a suffix counts from the end"),
        pytest.param("bytes=-500", [(0, 99)], id="a suffix longer than the blob is all of it"),
        pytest.param("bytes=90-500", [(90, 99)], id="an end past the blob is clamped"),
        pytest.param(f"bytes=5-{'9' * 5000}", [(5, 99)], id="an absurdly long end is clamped"),
        pytest.param(f"bytes={'0' * 5000}5-6", [(5, 6)], id="leading zeros mean nothing"),
        pytest.param("BYTES=0-1", [(0, 1)], id="the unit's case does not matter"),
        pytest.param("bytes=50-59,0-9", [(50, 59), (0, 9)], id="request order is kept"),
        pytest.param("bytes=0-9,5-14", [(0, 9), (5, 14)], id="overlaps are not merged"),
        pytest.param("bytes= 0-1 ,\t, 4-5,", [(0, 1), (4, 5)], id="blanks and empty elements"),
        pytest.param("bytes=0-1,200-300,-0,9-8", [(0, 1)], id="ranges without a byte drop out"),
    ],
)
def test_well_formed_ranges_become_spans(header: str, spans: list[tuple[int, int]]) -> None:
    """A satisfiable header names exactly these bytes of a blob of 100."""
    assert parse_range(header, 100) == tuple(Span(*span) for span in spans)


@pytest.mark.parametrize(
    "header",
    [
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=0-1;2-3",
        "bytes=+0-1",
        "bytes=0--1",
        "bytes=0 - 1",
        "bytes=٣-٤",
        "bytes=0-1,x",
        "lines=0-1",
        "0-1",
        "",
        pytest.param("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), id="too many ranges"),
    ],
)
def test_other_headers_are_ignored(header: str) -> None:
    """What is malformed, of another unit or too long gets the whole blob."""
    assert parse_range(header, 100) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=500-0", 1000),
        ("bytes=100-", 100),
        ("bytes=100-200", 100),
        ("bytes=-0", 100),
        (f"bytes={'9' * 5000}-", 100),
        ("bytes=200-300,-0", 100),
        ("bytes=0-", 0),
        ("bytes=0-0", 0),
        ("bytes=-1", 0),
    ],
)
def test_ranges_without_a_byte_are_refused(header: str, size: int) -> None:
    """416, with the size that belongs in its Content-Range, if no byte of the blob is asked for."""
    with pytest.raises(RangeInvalid) as caught:
        parse_range(header, size)
    assert caught.value.size == size


@pytest.mark.parametrize(
    ("if_range", "partial"),
    [
        pytest.param(None, True, id="no If-Range"),
        pytest.param(ETAG, True, id="our tag"),
        pytest.param(f"W/{ETAG}", False, id="a weak tag never matches"),
        pytest.param('"sha256:other"', False, id="another tag"),
        pytest.param("Wed, 21 Oct 2015 07:28:00 GMT", False, id="a date"),
        pytest.param("", False, id="nothing in it"),
    ],
)
def test_if_range_decides_whether_the_range_stands(if_range: str | None, partial: bool) -> None:
    """Only our own strong tag keeps the range; anything else means the whole blob."""
    spans = choose_spans("bytes=1-2", if_range, etag=ETAG, size=100)
    assert spans == ((Span(1, 2),) if partial else None)


def test_a_stale_range_is_not_judged() -> None:
    """If-Range that fails comes first: a range past the end is ignored with it, not refused."""
    assert choose_spans("bytes=500-", '"old"', etag=ETAG, size=100) is None
    assert choose_spans(None, None, etag=ETAG, size=0) is None


def test_as_many_ranges_as_promised_are_served() -> None:
    """The greatest number of ranges that is not ignored gives that many spans."""
    header = "bytes=" + ",".join(f"{n}-{n}" for n in range(MAX_RANGES))
    assert len(parse_range(header, MAX_RANGES) or ()) == MAX_RANGES


def test_content_range_names_both_ends_and_the_size() -> None:
    """The rendered value is the one clients parse."""
    assert Span(3, 7).content_range(100) == "bytes 3-7/100"
    assert Span(3, 7).length == 5


@given(header=st.text(max_size=40) | st.from_regex(r"bytes=[0-9, -]{0,30}"), size=st.integers(0))
def test_any_header_gives_spans_inside_the_blob(header: str, size: int) -> None:
    """No header makes the parser fail in any other way, or name a byte that is not there."""
    try:
        spans = parse_range(header, size)
    except RangeInvalid:
        return
    for span in spans or ():
        assert 0 <= span.first <= span.last < size


def test_ranges_that_overlap_are_ignored() -> None:
    """An answer holds a blob's bytes twice at the most, however often they are asked for (B7)."""
    assert parse_range("bytes=0-99,0-99", 100) == (Span(0, 99), Span(0, 99))
    assert parse_range("bytes=" + ",".join(["0-"] * 3), 100) is None
