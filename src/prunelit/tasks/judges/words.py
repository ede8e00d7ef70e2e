"""Split a text into words and numbers, by the properties of Unicode.

Every function takes time in proportion to the length of the text: digits and their separators are
found as one run, and the run is read or split afterwards.
"""

import unicodedata
from fractions import Fraction

import regex

from prunelit.tasks.judges.magnitudes import CHARACTERS, POWERS, WORDS

# Scripts without spaces, and Hangul, whose words carry particles: each character is a word.
_SCRIPTS = (
    *("Han", "Hira", "Kana", "Bopo", "Yiii", "Hang", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"),
    *("Bali", "Java", "Cham", "Lana", "Tale", "Talu", "Tavt"),
)
_ALONE = "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS)
# A mark of all scripts, such as an accent, belongs to words too.
_OWN_MARKS = "".join(rf"\p{{sc={script}}}" for script in _SCRIPTS)
_WORD = rf"[[[\p{{L}}\p{{N}}]--[{_ALONE}]][\p{{M}}--[{_OWN_MARKS}]]]"
_LETTER = rf"[\p{{L}}--[{_ALONE}]]"
# Signs of Khmer and Burmese that put the next letter below.
_STACK = "\u17d2\u1039"
_CHARACTER = rf"[[\p{{L}}\p{{N}}]&&[{_ALONE}]](?:[{_STACK}]\p{{L}}|\p{{M}})*+"
_POWER = r"\{?(?P<power>[+-]?[0-9]{1,3}+)\}?"
# A currency sign after a number belongs to that number; `$` also begins a formula in LaTeX.
_CURRENCY_AFTER = r"(?<=[0-9])\p{Sc}|(?<=[0-9]\ )[\p{Sc}--$]"
# After these a minus sign is subtraction, a hyphen or "to": a word, a unit, a closing bracket.
_BEFORE_HYPHEN = (
    rf"{_WORD}|[%‰°\p{{Pe}}]|{_CURRENCY_AFTER}|(?<=[0-9]\u2032?)[!'\"\u2019\u201d\u2032]|[0-9]-"
)
_NUMBER = (
    rf"(?P<sign>(?:(?<!{_BEFORE_HYPHEN})-)?+(?:(?!{_CURRENCY_AFTER})\p{{Sc}}\ ?+-?+)?+)"
    r"(?P<run>[0-9]++(?:[.,:/][0-9]++)*+|(?<![.\w])\.[0-9]++)"
    rf"(?:[eE]{_POWER}(?!{_WORD})|\ ?(?:[xX\u00d7*\u00b7\u22c5]|\\times|\\cdot)\ ?10(?:\^|\*\*)"
    rf"{_POWER}"
    rf"|(?P<of>\^|\*\*){_POWER}"
    # A whole number and a fraction: 1 1/2, and 1-1/2 where it is no term of a calculation.
    r"|(?<!/[0-9]{1,3})(?P<joint>[\ -])(?P<above>[0-9]{1,3}+)/(?P<below>[0-9]{1,3}+)"
    r"(?![0-9/]|[.,][0-9])(?!\ ?[=+*\u00d7\u00f7]))?"
)
# A prime after a letter, where no quotation ends.
_PRIME = r"(?<=(?<![\w'\u2018])\p{L})['\u2019\u2032\u2033]++(?!\w)"
# Signs of mathematics and arrows are words. A plus before a number, `|` and signs of Markdown and
# of multiplication by a point are none.
_OPERATOR = (
    rf"(?<!{_BEFORE_HYPHEN})-\u221e|-++>|!=|(?<![<=>])[<>=]{{1,2}}(?![<=>])"
    r"|(?<=[\w)\]}]\ ?)\+|\+(?![\w\p{Sc}\u221e]|\.\d)|(?<!~)~(?!~)"
    r"|[[\p{Sm}\u2190-\u21ff]--[+<=>|~\u22c5\u2217\u2223]]"
)
# Letters in the place of signs that are part of a word: 5! and A*.
RAISED = {"!": "\ua71d", "*": "\ua788"}
# A term goes on after the sign, so that it ends no sentence.
FACTORIAL = regex.compile(
    r"(?<=\d|(?<!\w)\p{Ll}|[)\]])!"
    r"(?=\d|\ ?(?:=(?!=)|[-+*/\u00d7\u00f7\u00b7^]\ ?[\d(]|(?:is|equals)(?!\w)))"
)
_FIND = regex.compile(_NUMBER, regex.VERSION1)
_ONLY = regex.compile(rf"\+?{_NUMBER}\.?\ ?[\p{{Sc}}%]?\.?", regex.VERSION1)
_TOKEN = regex.compile(
    # A date is one word, and so are letters with decimals, such as llama3.1.
    rf"(?<![\w-])[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?![\w-])"
    # A number in another word: 3rd, 1990s, 5x, 3D, 3h30. R&D and AT&T are one word, US&UK is not.
    rf"|(?:(?<!{_BEFORE_HYPHEN})-)?+(?<!{_WORD}|[.,:/])[0-9]++(?:,[0-9]{{3}})*+"
    rf"(?:st|nd|rd|th|er|ère|ème|h[0-9]{{2}}|{RAISED['!']}++|[bdxyz\u03c0](?:\^-?+[0-9]++)?"
    rf"|(?<=[0-9]{{3}}0)s)(?!{_WORD}|\ ?10(?:\^|\*\*))"
    # -x
    rf"|(?<!{_BEFORE_HYPHEN})-{_LETTER}(?:\^-?+[0-9]++)?(?![\w'\u2019&-]|\.\w)"
    rf"|(?<![\w&])(?:{_LETTER}(?:&{_LETTER}{{1,2}})++|{_LETTER}{{2}}&{_LETTER})(?![\w&])"
    rf"|{_NUMBER}|{_CHARACTER}"
    # .NET, C++ and C# are no punctuated net and c; A- is another grade than A.
    rf"|(?:(?<=^|\s)\.(?=\p{{L}}))?{_WORD}(?:_*+{_WORD}|(?<=\p{{L}})\^-?+[0-9])*+"
    rf"(?:(?<=[0-9])(?:\.[0-9]++|,[0-9]{{3}}(?![0-9])))*+"
    rf"(?:[+#\u266d]++(?!\w)|(?<=(?<!\w)\w{{1,2}})-(?=[\s.,;:!?)]|$)|{_PRIME})?|{_OPERATOR}",
    regex.VERSION1,
)
# A number with thousands apart, by other signs than a comma, a point or a space.
_SEPARATOR = regex.compile(r"[\u00a0\u2007\u2009\u202f'\u2019_\u066c]|\{,\}|\\,")
_SEPARATED = regex.compile(rf"(?<![\d.,])(?!0)\d{{1,3}}(?:(?:{_SEPARATOR.pattern})\d{{3}}(?!\d))+")
# The Arabic tatweel only makes a word longer.
_INVISIBLE = regex.compile(r"[\p{Cf}\ufe00-\ufe0f\u0640]")
_TERM = r"\s*(?:\{\s*([+\-\u2212]?)\s*(\d[\d,]*)\s*\}|()(\d))"
_FRACTION = regex.compile(
    rf"(\w?)(?:(?<![\w)\]}}]\s?)([-\u2212])\s?)?\\(?:[cdt]|nice|s)?frac{_TERM}{_TERM}"
)
# Before a minus in words: the begin of a sentence, or a word that ends in no number.
_AFTER = (
    r"(?<=(?:^|[.,:;=(]|(?<!\w)(?:is|are|be|was|were|equals|to|or|of|at|than|exactly|gives|get"
    r"|ist|est|es|son|é|è|sono|равно|это))\ ?)"
)
_ENGLISH = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    "|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)
_CODES = "USD|US|EUR|GBP|JPY|CNY|RMB|INR|Rs|CHF|CAD|AUD|NZD|HKD|SGD|KRW|BRL|MXN|ZAR|SEK|NOK|DKK|PLN"
_SPELLINGS = (
    # A currency, a number sign and the v of a version are words of their own.
    (regex.compile(rf"(?<!\w)(?:(?i:{_CODES})|№|[vV](?=\d+\.\d))\.?+(?=\d)"), r"\g<0> "),
    (regex.compile(r"\\(?=[$%])"), ""),
    # A minus in words. After anything else it may be subtraction.
    (
        regex.compile(
            rf"(?<![\w-])(?i:negative|{_AFTER}(?:minus|moins|menos|meno|минус))\ (?=[\d\p{{Sc}}])"
        ),
        "-",
    ),
    (regex.compile(rf"(?<![\w-])((?i:negative|{_AFTER}minus)) (?=(?i:{_ENGLISH})(?!\w))"), r"\1_"),
    (regex.compile(r"(?<!\d)(?:负|負|マイナス)\ ?(?=\d)"), "-"),
    # A time of day with a zero in front.
    (regex.compile(r"(?<![\w:.,/-])0(?=\d:\d\d(?![\d]))"), ""),
    (regex.compile(r"(?<=[={(\[]\s?)([-\u2212])\s+(?=[\d\p{Sc}])"), r"\1"),
    (regex.compile(r"(?<=\p{L})\^\{([-\u2212]?\d+)\}"), r"^\1"),
    (regex.compile(r"(?<=\d)\ (?=\u03c0(?!\w))"), ""),
    # The comma of a pair, such as (1,5), is that of no decimals.
    (
        regex.compile(
            r"(?<=(?:[(\[]|(?<!\w)\{)\s?[-\u2212]?\d+),(?!\d{3}\D)"
            r"(?=[-\u2212]?\d+\s?(?:\\right)?[)\]}])"
        ),
        ", ",
    ),
)
# A number and the word or letter that multiplies it; 5m is a length.
_MULTIPLE = regex.compile(
    r"(?<![\w.,/:])(\d++(?:[.,]\d++)*+(?:(?:\ \d{1,3})?/\d{1,3})?+)"
    rf"(?:(?:\ ?(?P<word>(?i:{'|'.join(sorted(WORDS, key=len, reverse=True))})(?!\w)))++"
    r"|(?P<word>[kKM]|[mbt]n|(?<=\p{Sc}\ ?[\d.,]+)[bBmT])(?!\w))"
)
_MYRIAD = regex.compile(
    rf"(?<![\d.,/:])(?:(\d++(?:[.,]\d++)*+)\ ?({CHARACTERS})(?:\ (?=\d))?)++(\d++)?+(?![\d.,/:]*\d)"
)
# The day of a date may have an ending.
_DAY = regex.compile(
    r"(?i)((?<!\w)(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?\ \d{1,2})(?:st|nd|rd|th)(?!\w)"
)
# U.S.A., e.g., Ph.D., J. K. Rowling
ABBREVIATION = regex.compile(
    r"(?<![\w.])(?:[\p{Lu}\p{Ll}]\.(?:\ ?[\p{Lu}\p{Ll}]\.)++(?!\w)"
    r"|(?:(?i:ph)|[\p{Lu}\p{Ll}])(?:\.[\p{Lu}\p{Ll}](?!\w))++\.?(?!\w))"
)
_AND = regex.compile(
    rf"(?<![\w&])(?:{_LETTER}\ &\ {_LETTER}{{1,2}}|{_LETTER}{{2}}\ &\ {_LETTER})(?![\w&])",
    regex.VERSION1,
)
_ROOT = regex.compile(r"(?:\\?sqrt|\u221a)\s?(?:\{(\d+)\}|\((\d+)\)|(\d+))")
# Spaces between thousands: before 000, with decimals, with a currency, or more than once.
_SPACED = regex.compile(
    r"(?<![\d.,] ?|[\p{L}_])[1-9]\d{0,2}(?:(?: \d{3}){2,}| 000"
    r"|(?: \d{3})+(?=[.,]\d{1,2}(?!\d)|\ ?\p{Sc})|(?<=\p{Sc}\ ?\d{1,3})(?: \d{3})+)(?! ?\d)"
)
_SAME = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\u02d7\u2796\ufe63\uff0d", "-")
    | {"\u2264": "<=", "\u2265": ">=", "\u2260": "!=", "\u2192": "->"}
    | {"\u2044": "/", "\u2215": "/", "\u066b": ".", "\u066a": "%", "♯": "#"}
)
_SHOWN = str.maketrans(
    {"\u2032": "'", "\u2019": "'"} | {raised: one for one, raised in RAISED.items()}
)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, with numbers in one spelling.

    Digits that are no number, such as 10:30 or 1.2.3, are one word, and so are abbreviations with
    or without points. 5k is 5000.
    """
    words: list[str] = []
    text = _ROOT.sub(lambda found: f"sqrt{found[1] or found[2] or found[3]}", _plain(text))
    for pattern in (ABBREVIATION, _AND):
        text = pattern.sub(lambda found: regex.sub("[. ]", "", found[0]), text)
    text = _write_powers(_DAY.sub(r"\1", raise_sign("!", FACTORIAL, text)))
    # The capital I with a dot of Turkish becomes an i with a second dot.
    folded = text.casefold().replace("i\u0307", "i")
    for found in _TOKEN.finditer(unicodedata.normalize("NFKC", folded)):
        if found["run"] is None:
            words.append(found[0].translate(_SHOWN))
        else:
            words += [value or part for part, value in _parts(found, " ,")]
    return words


def raise_sign(sign: str, pattern: regex.Pattern[str], text: str) -> str:
    """Write a sign as a letter, so that it is part of the word before it."""

    def write(found: regex.Match[str]) -> str:
        apart = found.string[found.end() : found.end() + 1].isdecimal()
        return RAISED[sign] * len(found[0]) + " " * apart

    return pattern.sub(write, text)


def find_numbers(text: str) -> list[str]:
    """Return the numbers of a text as they are written, with sign and currency.

    5 million is 5e6.
    """
    numbers: list[str] = []
    for found in _FIND.finditer(_write_powers(_plain(text))):
        for part, value in _parts(found, " ,/:^*{}"):
            # The numbers of an outline or a version, such as 1.2.3, are taken apart.
            numbers += [part] if value is not None else part.split(".")
    return numbers


def read_number(text: str) -> str | None:
    """Return a number in one spelling; None if the text is anything else than one number."""
    found = _ONLY.fullmatch(_write_powers(_plain(text)).strip())
    return None if found is None else _value(found)


def trim_word(text: str) -> str:
    """Return a text without the punctuation at its ends.

    The minus sign of a number stays, and `+` and `#` after a word.
    """
    inside = [n for n, c in enumerate(text) if c == "_" or unicodedata.category(c)[0] in "LMN"]
    if not inside:
        return ""
    start, end = inside[0], inside[-1] + 1
    if start and text[start].isdecimal() and text[start - 1].translate(_SAME) == "-":
        start -= 1
    while text[end : end + 1] in ("+", "#"):
        end += 1
    return text[start:end]


def _plain(text: str) -> str:
    """Return a text with one sort of digits, minus signs and separators."""
    text = _SEPARATED.sub(lambda found: _SEPARATOR.sub("", found[0]), text)
    text = _FRACTION.sub(_write_fraction, text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _SPACED.sub(lambda found: found[0].replace(" ", ""), text)
    if text.isascii():
        return text
    parts: list[str] = []
    before = ""
    for character in _INVISIBLE.sub("", text):
        if character.isdecimal():
            parts.append(str(unicodedata.decimal(character)))
        else:
            kind = unicodedata.decomposition(character).partition(">")[0]
            if (
                before.isalpha()
                and kind == "<super"
                and unicodedata.category(character) in ("No", "Sm")
            ):
                parts.append("^")
            elif before.isdecimal() and character not in "\u2044\u2215":
                # A power, an index or a fraction after a number is no further digit of it.
                between = " " if character.isnumeric() else ""
                parts.append({"<super": "^", "<sub": "_"}.get(kind, between))
            parts.append(character)
        before = character
    return unicodedata.normalize("NFKC", "".join(parts)).translate(_SAME)


def _write_fraction(found: regex.Match[str]) -> str:
    """Return a fraction of LaTeX as 1/2, with one sign, apart from a whole number before it."""
    before, minus, *terms = found.groups()
    (sign, above, _, digit), (other, below, _, last) = terms[:4], terms[4:]
    signs = [one for one in (minus, sign, other) if one and one != "+"]
    return f"{before} {'-' * (len(signs) % 2)}{above or digit}/{below or last}".lstrip()


def _write_powers(text: str) -> str:
    """Write 5k, 5 million and 5万 as numbers alone."""
    return _MULTIPLE.sub(_multiply, _MYRIAD.sub(_add_myriads, text))


def _multiply(found: regex.Match[str]) -> str:
    """Return 5k and 5 thousand as 5e3."""
    number, power = read_number(found[1]), sum(POWERS[w.lower()] for w in found.captures("word"))
    if number is None:
        return found[0]
    above, bar, below = number.partition("/")
    return f"{int(above) * 10**power}/{below}" if bar else f"{number}e{power}"


def _add_myriads(found: regex.Match[str]) -> str:
    """Return 1万2000 as 12000."""
    total = Fraction(int(found[3] or 0))
    for digits, units in zip(found.captures(1), found.captures(2), strict=True):
        number = _read_digits(digits, sum(POWERS[unit] for unit in units))
        if number is None:
            return found[0]
        total += Fraction(number)
    places = next(n for n in range(len(found[0]) + 1) if 10**n % total.denominator == 0)
    value = _decimal(str(int(total * 10**places)), "", -places)
    return f"{value} " if found.string[found.end() : found.end() + 1].isalpha() else value


def _parts(found: regex.Match[str], separators: str) -> list[tuple[str, str | None]]:
    """Return a number and its value; if it is none, the parts between separators and theirs."""
    if (value := _value(found)) is not None:
        return [(found[0], value)]
    if found["joint"]:
        cut = found.start("joint") - found.start()
        pieces = (found[0][:cut], found[0][cut + 1 :])
        numbers = (number for piece in pieces for number in _FIND.finditer(piece))
        return [pair for number in numbers for pair in _parts(number, separators)]
    parts = regex.split(f"[{regex.escape(separators)}]", found[0])
    return [(part, read_number(part)) for part in parts if regex.search("[0-9]", part)]


def _value(found: regex.Match[str]) -> str | None:
    """Return the value of a number in one spelling; None if it is no number."""
    run, power = found["run"], int(found["power"] or 0)
    if found["of"]:
        if run != "10":
            return None
        run = "1"
    if found["above"] or "/" in run:
        digits = _fraction(run, found["above"], found["below"])
        if found["joint"] == "-" and not run.strip("0"):
            return None
    else:
        digits = _read_digits(run, power)
    return f"-{digits}" if digits and digits != "0" and "-" in found["sign"] else digits


def _read_digits(run: str, power: int) -> str | None:
    """Return digits with separators, times 10 to a power, in one spelling; None if no number."""
    if not run.replace(",", "").replace(".", "").isdecimal():
        return None
    for point, comma in (".,", ",."):
        whole, _, part = run.partition(point)
        first, *groups = whole.split(comma)
        if part and not part.isdecimal():
            continue
        # A comma is that of decimals only where it cannot separate thousands.
        long = len(part) == 3 and len(first) > 3
        if point == "," and not (groups or len(part) in (1, 2) or first == "0" or not part or long):
            continue
        if point == "," and not part and len(groups) < 2:
            continue
        sizes = [len(group) for group in groups]
        thousands = len(first) <= 3 and set(sizes) == {3}
        lakhs = point == "." and len(first) <= 2 and sizes[-1:] == [3] and set(sizes[:-1]) == {2}
        if not groups or (first[:1] not in ("", "0") and (thousands or lakhs)):
            return _decimal(first + "".join(groups), part, power)
    return None


def _fraction(run: str, above: str | None, below: str | None) -> str | None:
    """Return a fraction, or a whole number and a proper fraction, as a decimal if it ends."""
    whole = "0"
    if above is None or below is None:
        above, below = run.split("/", 1)
    else:
        whole = run
    numbers = [regex.sub(",", "", part) for part in (whole, above, below)]
    if not all(part.isdecimal() and len(part) < 16 for part in numbers):
        return None
    first, second, third = map(int, numbers)
    if third == 0 or (whole is run and second >= third):
        return None
    value = first + Fraction(second, third)
    places = next((n for n in range(50) if 10**n % value.denominator == 0), None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    return _decimal(str(value.numerator * 10**places // value.denominator), "", -places)


def _decimal(whole: str, part: str, power: int) -> str:
    """Return digits before and after the point, times 10 to a power, without idle zeros."""
    digits, point = whole + part, len(whole) + power
    digits = "0" * -point + digits + "0" * (point - len(digits))
    point = max(point, 0)
    before, after = digits[:point].lstrip("0") or "0", digits[point:].rstrip("0")
    return f"{before}.{after}" if after else before
