"""Numbers rounded as sentences have them, without exponents."""

import math


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits: "0.0213", "3.22", "3,224", "1.2 x 10^15".

    The digits before the decimal point are all kept.
    """
    if not math.isfinite(value):
        return f"{value:g}"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if not -7 < int(exponent) < 15:
        return f"{float(mantissa):g} x 10^{int(exponent)}"
    decimals = digits - 1 - int(exponent)
    text = f"{value:,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if decimals > 0 else text


def p_text(value: float) -> str:
    """Return "p = 0.013", or "p < 0.0001"."""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"
