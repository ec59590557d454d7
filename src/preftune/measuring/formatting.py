"""How the page writes a number."""

import math

NOT_MEASURED = "not measured"


def format_number(
    value: int | float | None,
    digits: int,
    *,
    signed: bool = False,
    interval: tuple[int | float, int | float] | None = None,
) -> str:
    """Write a number, and its interval as "0.52 (0.48 to 0.56)".

    Args:
        value: the number; None reads "not measured", a NaN reads "NaN".
        digits: decimals.
        signed: whether a positive number gets its plus.
        interval: low and high end.
    """
    if value is None:
        return NOT_MEASURED
    if math.isnan(value):
        return "NaN"
    # Adding zero turns a rounded -0.0 into 0.0.
    rounded = round(value, digits) + 0.0
    text = f"{rounded:{'+' if signed and rounded else ''},.{digits}f}".replace("-", "−")  # noqa: RUF001 a minus sign
    if interval is None:
        return text
    low, high = (format_number(end, digits, signed=signed) for end in interval)
    return f"{text} ({low} to {high})"
