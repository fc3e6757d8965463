import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.durations import parse_duration, show_duration
from tests.support.canary import CANARY


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("+0", 0.0),
        ("5s", 5.0),
        ("30s", 30.0),
        ("1478s", 1478.0),
        ("-5s", -5.0),
        ("+5s", 5.0),
        ("5.0s", 5.0),
        ("5.6s", 5.6),
        ("5.s", 5.0),
        (".5s", 0.5),
        ("1.004s", 1.004),
        ("100.00100s", 100.001),
        ("10ns", 1e-8),
        ("11us", 1.1e-5),
        ("12µs", 1.2e-5),
        ("12μs", 1.2e-5),
        ("13ms", 0.013),
        ("15m", 900.0),
        ("16h", 57600.0),
        ("3h30m", 12600.0),
        ("10.5s4m", 250.5),
        ("-2m3.4s", -123.4),
        ("1h2m3s4ms5us6ns", 3723.004005006),
        ("52763797000ns", 52.763797),
        ("0.3333333333333333333h", 1200.0),
        ("0.100000000000000000000h", 360.0),
        ("0.9223372036854775807h", 3320.413933267),
        ("00000000000000000000000007s", 7.0),
        ("9223372036854775807ns", 9223372036.854775807),
        ("-9223372036854775808ns", -9223372036.854775808),
    ],
)
def test_reads_what_go_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        *("", "3", "60", "-", "+", "s", ".", "-.", ".s", "+.s", "1.5", "1 s", " 1s", "1s ", "1S", "1d", "--1s", "1e3s"),
        *(
            "3000000h",
            "9223372036854775808ns",
            "-9223372036854775809ns",
            "10000000000000000000s",
            "1s2",
            "\u0661s",
            "1x",
        ),
        CANARY,
        f"1{CANARY}",
    ],
)
def test_refuses_what_go_refuses_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="duration") as caught:
        parse_duration(text)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (0.0001, "0s"), (0.25, "250ms"), (0.9996, "1s"), (1, "1s"), (1.5, "1.5s"), (59.999, "59.999s")),
        *((60, "1m"), (90, "1m30s"), (3600, "1h"), (5400, "1h30m"), (3601, "1h1s"), (90000, "25h"), (-1.5, "-1.5s")),
    ],
)
def test_shows_one_way_to_write_a_duration(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@given(st.integers(-(10**12), 10**12))
def test_what_is_shown_can_be_read(milliseconds: int) -> None:
    assert round(parse_duration(show_duration(milliseconds / 1000)) * 1000) == milliseconds


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="0123456789.+-smhnuµ ", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert abs(seconds) < 1e10
