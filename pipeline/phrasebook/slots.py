"""What can stand in a sentence's gaps: each value's forms in English, German and French.

A slot lists values that mean the same in every language and renders one of them as its forms in one language: the
plain one, and those that grammar asks for (`of`: "d'Oslo", `dative`: "der Schweiz"). Within a slot no two values
share a form that sentences tell them apart by, so that a sentence has one translation, in either direction.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from babel import Locale
from babel.dates import format_date, format_skeleton, format_time, format_timedelta, get_day_names, get_month_names
from babel.numbers import format_compact_decimal, format_currency, format_decimal, format_percent, get_currency_name
from babel.units import format_unit
from num2words import num2words

from transloom.pipeline.phrasebook import words


class Forms(dict[str, str]):
    """Inflected forms by name; formats as the plain one."""

    def __str__(self) -> str:
        return self["plain"]


class Slot(NamedTuple):
    values: Sequence[Any]
    render: Callable[[Any, str], Forms]


@lru_cache(maxsize=500_000)
def fill(slot: str, index: int, language: str) -> Forms:
    """The forms of the slot's value number `index`, with ordinary spaces where CLDR has no-break ones."""
    forms = SLOTS[slot].render(SLOTS[slot].values[index], language)
    return Forms({name: " ".join(text.split()) for name, text in forms.items()})


# Before these French drops the vowel of le, la and de. (No h: hindi and hongrois keep it, l'huile does not.)
_VOWELS = "aeiouéâîœ"


def _de(noun: str, language: str) -> str:
    """The noun, in French after "de": de farine, d'oignons."""
    if language != "fr":
        return noun
    return f"d'{noun}" if noun[0].lower() in _VOWELS or noun.startswith("huile") else f"de {noun}"


def _same_name(name: str, language: str) -> Forms:
    return Forms(plain=name, of=_de(name, language))


def _city(zone: str, language: str) -> Forms:
    in_english = zone.rpartition("/")[2].replace("_", " ")
    return _same_name(Locale(language).time_zones.get(zone, {}).get("city", in_english), language)


def _country(country: tuple[str, str], language: str) -> Forms:
    """`the` as a subject or object, `in`, `to`, `from`; `bare_from` later in a list that began with `from`."""
    french_article, code = country
    name = Locale(language).territories[code]
    if language == "de":
        article, dative = words.GERMAN_ARTICLES.get(code, ("", ""))
        to = f"in {article}{name}" if article else f"nach {name}"
        in_dative = f"{dative}{name}n" if dative == "den " else dative + name
        return Forms(
            {"the": article + name, "in": f"in {in_dative}", "to": to, "from": f"aus {in_dative}"}, bare_from=in_dative
        )
    if language == "fr":
        to = {"le": "au ", "la": "en ", "l'": "en ", "les": "aux "}[french_article] + name
        origin = {"le": "du ", "la": "de ", "l'": "d'", "les": "des "}[french_article] + name
        the = f"{french_article}{name}" if french_article == "l'" else f"{french_article} {name}"
        return Forms({"the": the, "in": to, "to": to, "from": origin}, bare_from=origin)
    the = f"the {name}" if code == "NL" else name
    return Forms({"the": the, "in": f"in {the}", "to": f"to {the}", "from": f"from {the}"}, bare_from=the)


def _language(code: str, language: str) -> Forms:
    name = Locale(language).languages[code]
    if language != "fr":
        return Forms(plain=name, the=name)
    return Forms(plain=name, the=f"l'{name}" if name[0] in _VOWELS else f"le {name}")


def _weekday(weekday: int, language: str) -> Forms:
    name = get_day_names(locale=language)[weekday]
    return Forms(plain=name, each={"en": f"{name}s", "de": f"{name.lower()}s", "fr": f"le {name}"}[language])


def _month(month: int, language: str) -> Forms:
    return Forms(plain=get_month_names(locale=language)[month])


def _first_of_month(text: str, day: date, language: str) -> str:
    """CLDR writes "1 mars", but French says "1er mars"."""
    return text.replace("1 ", "1er ", 1) if language == "fr" and day.day == 1 else text


def _month_and_day(day: date, language: str) -> str:
    return _first_of_month(format_skeleton("MMMMd", day, locale=language), day, language)


def _date(day: date, language: str) -> Forms:
    text = _first_of_month(format_date(day, "long", locale=language), day, language)
    weekday = _first_of_month(format_date(day, "full", locale=language), day, language)
    if language == "de":  # CLDR has "Freitag, 1. Mai 2026"; a sentence wants an article.
        nominative, dative = (weekday.replace(", ", f", {article} ", 1) for article in ("der", "dem"))
        return Forms(plain=text, weekday=nominative, weekday_dative=dative)
    return Forms(plain=text, weekday=weekday)


def _interval(interval: tuple[date, int], language: str) -> Forms:
    start, days = interval
    return Forms(start=_month_and_day(start, language), end=_month_and_day(start + timedelta(days), language))


def _clock(moment: time, language: str) -> str:
    if language == "fr":
        return format_time(moment, "H 'h' mm" if moment.minute else "H 'h'", locale="fr")
    return format_time(moment, "short", locale=language) + (" Uhr" if language == "de" else "")


def _hours(hours: tuple[time, time], language: str) -> Forms:
    start, end = (_clock(moment, language) for moment in hours)
    return Forms(start=start.removesuffix(" Uhr"), end=end)


def _duration(hours_minutes: tuple[int, int], language: str) -> Forms:
    hours, minutes = hours_minutes
    text = format_unit(hours, "duration-hour", locale=language)
    if minutes:
        joint = {"en": "and", "de": "und", "fr": "et"}[language]
        text += f" {joint} {format_unit(minutes, 'duration-minute', locale=language)}"
    return Forms(plain=text)


_DAYS_IN = {"day": 1, "week": 7, "month": 30, "year": 365}


def _span(span: tuple[int, str], language: str) -> Forms:
    """Days to years: `ago`, `ahead`; `dative` is "drei Jahren"."""
    count, unit = span
    delta = timedelta(count * _DAYS_IN[unit])
    # granularity fixes the unit once the threshold keeps larger ones out.
    ahead, ago = (
        format_timedelta(sign * delta, granularity=unit, threshold=1e9, add_direction=True, locale=language)  # pyright: ignore[reportArgumentType]
        for sign in (1, -1)
    )
    plain = format_unit(count, f"duration-{unit}", locale=language)
    return Forms(plain=plain, ago=ago, ahead=ahead, dative=ahead.removeprefix("in ") if language == "de" else plain)


def _quantity(quantity: tuple[float, str], language: str) -> Forms:
    count, unit = quantity
    return Forms(plain=format_unit(count, unit, locale=language))


def _food(noun: dict[str, str], language: str) -> Forms:
    return Forms(of=f"of {noun['en']}" if language == "en" else _de(noun[language], language))


def _price(price: tuple[Decimal, str], language: str) -> Forms:
    return Forms(plain=format_currency(*price, locale=language))


def _amount(amount: tuple[int, str], language: str) -> Forms:
    count, currency = amount
    name = get_currency_name(currency, count=count, locale=language)
    if language == "de" and currency in words.ADJECTIVAL_CURRENCIES:
        name = name[0].lower() + name[1:]
    return Forms(plain=f"{format_decimal(count, locale=language)} {name}")


def _ordinal(number: int, language: str) -> Forms:
    """`n` is the weak ending of German: im dritten; `feminine` is French."""
    word = num2words(number, lang=language, to="ordinal")
    return Forms(plain=word, n=f"{word}n", feminine=word.replace("premier", "première"))


def _sum(addends: tuple[int, int], language: str) -> Forms:
    a, b = addends
    return Forms({name: num2words(value, lang=language) for name, value in (("a", a), ("b", b), ("c", a + b))})


def _million(tenths: int, language: str) -> Forms:
    return Forms(plain=format_compact_decimal(tenths * 100_000, format_type="long", locale=language, fraction_digits=1))


def _percent(percent: Decimal, language: str) -> Forms:
    return Forms(plain=format_percent(percent / 100, locale=language, decimal_quantization=False))


def _units(counts: Iterable[float], *units: str) -> list[tuple[float, str]]:
    return list(product(counts, units))


_LARGE = [*range(100, 1000, 50), *range(1100, 10_000, 100), *range(10_500, 100_000, 500)]
_HALVES = [whole + 0.5 for whole in range(1, 10)]
_SMALL = [*_HALVES, *range(2, 21)]
_YEARS = range(1980, 2026)
# Any year without a leap day; ends early so that no interval leaves it.
_DAYS_OF_YEAR = [date(2023, 1, 1) + timedelta(days) for days in range(340)]
_CLOCKS = [time(hour, minute) for hour, minute in product(range(5, 24), range(0, 60, 5))]
_OPENING = [time(hour, minute) for hour, minute in product(range(6, 12), (0, 15, 30, 45))]
_CLOSING = [time(hour, minute) for hour, minute in product(range(13, 22), (0, 15, 30, 45))]
_CENTS = ("00", "20", "50", "75", "90", "99")
# None ends in one: French would need the gender of what is counted (vingt et une tasses).
_COUNTS = [*range(2, 21), 22, 24, 25, 30, 32, 35, 36, 40, 45, 48, 50, 60, 64, 70, 75, 80, 90]

SLOTS = {
    "person": Slot(words.PEOPLE.split(), _same_name),
    "city": Slot(words.CITY_ZONES.split(), _city),
    "european_city": Slot([zone for zone in words.CITY_ZONES.split() if zone.startswith("Europe/")], _city),
    "country": Slot([(a, c) for a, codes in words.COUNTRIES.items() for c in codes.split()], _country),
    "language": Slot(words.LANGUAGES.split(), _language),
    "weekday": Slot(range(7), _weekday),
    "month": Slot(range(1, 13), _month),
    "year": Slot(_YEARS, lambda year, _: Forms(plain=str(year))),
    "date": Slot([date(_YEARS[0], 1, 1) + timedelta(days) for days in range(365 * len(_YEARS))], _date),
    "day": Slot(_DAYS_OF_YEAR, lambda day, language: Forms(plain=_month_and_day(day, language))),
    "interval": Slot(list(product(_DAYS_OF_YEAR, range(2, 21))), _interval),
    "time": Slot(_CLOCKS, lambda moment, language: Forms(plain=_clock(moment, language))),
    "hours": Slot(list(product(_OPENING, _CLOSING)), _hours),
    "duration": Slot(list(product(range(1, 15), range(0, 60, 5))), _duration),
    "minutes": Slot(_units([5, 6, 8, *range(10, 61, 5)], "duration-minute"), _quantity),
    "span": Slot(list(product(range(2, 25), _DAYS_IN)), _span),
    "count": Slot(_COUNTS, lambda number, language: Forms(plain=num2words(number, lang=language))),
    "number": Slot(_LARGE, lambda number, language: Forms(plain=format_decimal(number, locale=language))),
    "small": Slot(range(2, 300), lambda number, _: Forms(plain=str(number))),
    "ordinal": Slot(range(1, 41), _ordinal),
    "sum": Slot(list(product(range(2, 51), repeat=2)), _sum),
    "million": Slot([*range(12, 100), *range(105, 200, 5), *range(200, 1000, 10)], _million),
    "percent": Slot([Decimal(half) / 2 for half in range(1, 101)], _percent),
    "price": Slot([(Decimal(f"{n}.{c}"), m) for n, c, m in product(range(2, 200), _CENTS, ("EUR", "USD"))], _price),
    "amount": Slot(list(product([*range(25, 100, 5), *range(100, 1000, 25)], words.CURRENCIES)), _amount),
    "noun": Slot(words.NOUNS, lambda noun, language: Forms(plain=noun[language])),
    "solid": Slot(words.SOLIDS, _food),
    "liquid": Slot(words.LIQUIDS, _food),
    "weight": Slot(_units(_SMALL, "mass-kilogram") + _units(range(50, 1000, 50), "mass-gram"), _quantity),
    "volume": Slot(_units(_SMALL, "volume-liter"), _quantity),
    "distance": Slot(_units([*_SMALL, 25, 30, 42], "length-kilometer"), _quantity),
    "far": Slot(_units([*range(100, 1000, 10), *range(1100, 5000, 100)], "length-kilometer"), _quantity),
    "height": Slot(_units(range(12, 320), "length-meter"), _quantity),
    "rain": Slot(_units(range(2, 100), "length-millimeter"), _quantity),
    "temperature": Slot(_units([*range(-20, -1), *range(2, 41)], "temperature-celsius"), _quantity),
    "speed": Slot(_units(range(40, 325, 5), "speed-kilometer-per-hour"), _quantity),
    "area": Slot(_units([*_HALVES, *range(2, 100)], "area-hectare", "area-square-kilometer"), _quantity),
    "bytes": Slot(_units([*_HALVES, *range(2, 100)], "digital-megabyte", "digital-gigabyte"), _quantity),
}
