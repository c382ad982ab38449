r"""Parses numbers as people and models write them, exactly.

Examples: `1,234`, `6.02\times 10^{23}`, `3 1/2`, `18 dollars`.

Nothing is evaluated: the text is matched against the patterns below, and numbers are kept as fractions. A
calculation (`40+2`), a list (`4 or 5`) or an algebraic expression (`5x`) is not a quantity.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
"""Longer texts are not considered to be numbers."""
MAX_EXPONENT = 1000
"""Limit of powers of ten: larger ones would only consume memory."""

_DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_TIMES = r"\s*(?:\\times|\\cdot|×|⋅|·|\*|[xX])\s*"
_EXPONENT = rf"(?:[eE]([+-]?\d+)|{_TIMES}10\s*(?:\^|\*\*)\s*(?:\{{\s*([+-]?\d+)\s*\}}|\(?([+-]?\d+)\)?))"
_LATEX_FRACTION = r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d)(?=\s*[\d{]))\s*(?:\{\s*(\d+)\s*\}|(\d))"
_SCIENTIFIC = re.compile(rf"({_DECIMAL}){_EXPONENT}?")
_FRACTION = re.compile(rf"({_DIGITS})\s*/\s*({_DIGITS})")
_MIXED = re.compile(rf"(\d+)\s+(?:and\s+)?(\d+)\s*/\s*(\d+)|(\d+)\s*(?:and\s+)?{_LATEX_FRACTION}")
_LATEX = re.compile(_LATEX_FRACTION)
_POWER_OF_TEN = re.compile(r"10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\d+)\s*\}|\(?([+-]?\d+)\)?)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CURRENCIES = {"$": "dollar", "USD": "dollar", "€": "euro", "EUR": "euro", "£": "pound", "GBP": "pound"}
_CURRENCY = re.compile(r"^([+-]?)\s*\\?(\$|€|£|¥|₹|USD|EUR|GBP)\s*(?=[\d.\\])")
_PERCENT = re.compile(r"\s*(?:\\?%|\bper\s?cents?)$", re.IGNORECASE)
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree)")
_MULTIPLIERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_UNIT = re.compile(r"[^\W\d_]+(?:\s*(?:/|\^|\bper\b|\s)\s*(?:[^\W\d_]+|[23]|\{[23]\}))*")
_SPELLINGS = {
    "metre": "m meter metre meters metres",
    "centimetre": "cm centimeter centimetre centimeters centimetres",
    "millimetre": "mm millimeter millimetre millimeters millimetres",
    "kilometre": "km kilometer kilometre kilometers kilometres",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "gram": "g gram grams gramme grammes",
    "kilogram": "kg kgs kilogram kilograms",
    "milligram": "mg milligram milligrams",
    "ounce": "oz ounce ounces",
    "litre": "l liter litre liters litres",
    "millilitre": "ml milliliter millilitre milliliters millilitres",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "dollar": "dollar dollars usd",
    "cent": "cent cents",
    "euro": "euro euros eur",
    "degree": "deg degree degrees",
}
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in words.split()}
"""Units that are distinguished, by their spellings. Any other word also counts as a unit, but does not make
two numbers different: `5 apples` and `5 fruits` are both 5.
"""
_SHORT_WORDS = _words(
    "um lb lbs ms us ns gal kj cal kw mw wh kwh kv ohm hz khz mhz ghz pa kpa mpa bar atm mol cd rad "
    "ha sq cu mph kph kmh mps per pm am men cup egg box bag car cat dog pen day pie toy hat can jar "
    "cow hen pig boy bus gbp pts pt"
)
"""Words of fewer than four letters that are accepted as units. Other short words
could be products of variables.
"""
_NOT_UNITS = _words(
    "or and not no nor but if then to is are was isn t than when where because so thus either maybe "
    "sqrt sin cos tan log ln exp pi alpha beta gamma delta theta phi lambda omega sigma tau infinity "
    "inf mod choose factorial times plus minus over divided half halves third thirds squared cubed "
    "root dozen hundredths thousandths tenths hundreds thousands millions billions"
)
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SUPERSCRIPTS = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff\ufe0e\ufe0f]")
_SPACES = re.compile(r"\\[,;:! ]|~|[\u00a0\u2000-\u200a\u202f\u205f\u3000]|\\quad\b")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_MARKDOWN = re.compile(r"^(\*\*\*|\*\*|\*|___|__|_|`+)(.+)\1$", re.DOTALL)
_DELIMITERS = re.compile(r"^(?:\$\$(.+)\$\$|\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\])$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its unit. The unit is empty if none was written or if it is
    not one that is distinguished.
    """

    value: Fraction
    unit: str = ""

    def accepts(self, answer: Quantity) -> bool:
        """Return whether `answer` matches this reference. The unit may be missing but must not be a different
        one. A percentage also matches its plain number (`50%` accepts 0.5, 50% and 50), and a fraction
        matches its decimal form with six places.
        """
        if self.unit and answer.unit and self.unit != answer.unit:
            return False
        if self.unit == "%" and not answer.unit and self.value == answer.value / 100:
            return True
        return self.value == answer.value or _is_rounded(self.value, answer.value)


def _is_rounded(one: Fraction, other: Fraction) -> bool:
    """Return whether exactly one of the numbers has no finite decimal form, and the other one is its
    decimal with at least six places.
    """
    endless = [each for each in (one, other) if not _is_decimal(each)]
    return len(endless) == 1 and round(one, 6) == round(other, 6) and abs(one - other) < Fraction(1, 10**6)


def _is_decimal(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def plain(text: str) -> str:
    """Remove what only affects the appearance of a text: Markdown, math delimiters, a final full stop, and
    different Unicode forms of the same characters.

    >>> plain(" **−½** "), plain("cafe\u0301."), plain(r"\\(1\\,000\\)")
    ('- 1/2', 'café', '1 000')
    """
    text = _VULGAR.sub(lambda match: f" {unicodedata.normalize('NFKC', match[0])}", text)
    text = _SUPERSCRIPTS.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = unicodedata.normalize("NFKC", _SPACES.sub(" ", _INVISIBLE.sub("", text)))
    text = re.sub("[\u2012-\u2015\u2212]", "-", text.replace("\u2044", "/").replace("{,}", ","))
    while True:
        stripped = text.strip()
        if stripped.endswith(".") and not stripped.endswith(".."):
            stripped = stripped[:-1].rstrip()
        if match := _MARKDOWN.match(stripped):
            stripped = match[2]
        if (match := _DELIMITERS.match(stripped)) and "$" not in (inner := match[match.lastindex or 0]):
            stripped = inner
        if stripped == text:
            return text
        text = stripped


def quantity(text: str) -> Quantity | None:
    """Parse a text that is a single number with an optional unit; None for any other text.

    >>> quantity("1,234.50 dollars")
    Quantity(value=Fraction(2469, 2), unit='dollar')
    >>> quantity(r"$6.02 \\times 10^{3}$"), quantity("50%")
    (Quantity(value=Fraction(6020, 1), unit=''), Quantity(value=Fraction(1, 2), unit='%'))
    >>> quantity("40+2"), quantity("4 or 5"), quantity("5x"), quantity("1 2 3")
    (None, None, None, None)
    """
    if len(text) > MAX_LENGTH:
        return None
    text = _TEXT.sub(r" \1", plain(text)).strip()
    unit = ""
    if match := _CURRENCY.match(text):
        unit = _CURRENCIES.get(match[2], "")
        text = match[1] + text[match.end() :]
    text, percents = _PERCENT.subn("", text)
    if not percents:
        text, degrees = _DEGREES.subn("", text, count=1)
        unit = "degree" if degrees else unit
    sign = -1 if text.startswith("-") else 1
    found = _number(text.lstrip("+-") if text[:1] in ("+", "-") and text[1:2] not in ("+", "-") else text)
    if found is None:
        return None
    value, rest = found
    if rest:
        if percents or unit == "degree":
            return None
        factor, rest = _multiplier(rest)
        value *= factor
        written = _unit(rest) if rest else ""
        if written is None:
            return None
        unit = written or unit
    return Quantity(sign * value / 100, "%") if percents else Quantity(sign * value, unit)


def _number(text: str) -> tuple[Fraction, str] | None:
    """Parse the unsigned number at the start of the text. Returns it with the remaining text."""
    text = text.lstrip()
    for read in (_read_mixed, _read_fraction, _read_scientific):
        found = read(text)
        if found is not None:
            value, end = found
            rest = text[end:]
            # `5e`, `12abc` and `3.4.5` are not a number with a unit, but a unit may
            # directly follow a digit (`5kg`).
            return (value, rest.strip()) if not rest[:1].isdigit() and rest[:1] != "." else None
    return None


def _read_mixed(text: str) -> tuple[Fraction, int] | None:
    if match := _MIXED.match(text):
        whole, top, bottom = (group for group in match.groups() if group is not None)
        part = _ratio(top, bottom)
        return None if part is None else (int(whole) + part, match.end())
    return None


def _read_fraction(text: str) -> tuple[Fraction, int] | None:
    match = _FRACTION.match(text) or _LATEX.match(text)
    if match is None:
        return None
    top, bottom = (group for group in match.groups() if group is not None)
    ratio = _ratio(top, bottom)
    return None if ratio is None else (ratio, match.end())


def _read_scientific(text: str) -> tuple[Fraction, int] | None:
    if match := _POWER_OF_TEN.match(text):
        return _scaled("1", match[1] or match[2], match.end())
    if match := _SCIENTIFIC.match(text):
        return _scaled(match[1], match[2] or match[3] or match[4] or "0", match.end())
    return None


def _scaled(digits: str, exponent: str, end: int) -> tuple[Fraction, int] | None:
    if len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return Fraction(_digits(digits)) * Fraction(10) ** int(exponent), end


def _ratio(top: str, bottom: str) -> Fraction | None:
    denominator = int(_digits(bottom))
    return Fraction(int(_digits(top)), denominator) if denominator else None


def _digits(text: str) -> str:
    text = text.replace(",", "").replace(" ", "")
    return text + "0" if text.endswith(".") else text


def _multiplier(rest: str) -> tuple[int, str]:
    word, _, after = rest.partition(" ")
    power = _MULTIPLIERS.get(word.casefold())
    return (1, rest) if power is None else (10**power, after.strip())


def _unit(rest: str) -> str | None:
    """Parse the rest of a text as a unit: empty if it is not one that is
    distinguished, None if it is not a unit.
    """
    if not _UNIT.fullmatch(rest):
        return None
    words = re.findall(r"[^\W\d_]+", rest.casefold())
    if len(words) > 4 or any(word in _NOT_UNITS for word in words):
        return None
    if any(len(word) < 4 and word not in _UNITS and word not in _SHORT_WORDS for word in words):
        return None
    power = "".join(re.findall(r"[23]", rest))
    return _UNITS[words[0]] + power if len(words) == 1 and words[0] in _UNITS else ""
