"""Words and characters that multiply the number before them, in several languages.

A dozen and a pair are none: they are units, and a target of 5 may ask for dozens.
"""

import unicodedata

_WORDS = {
    2: "hundred hundreds",
    3: "thousand thousands tausend duizend mille mila тыс тысяча тысячи тысяч हज़ार nghìn ألف آلاف",
    5: "lakh lakhs लाख",
    6: "million millions mln mio millionen miljoen millón millones milhão milhões milione milioni "
    "milyon миллион миллиона миллионов млн मिलियन triệu مليون ملايين",
    7: "crore crores करोड़",
    9: "billion billions bn mrd milliarde milliarden milliard milliards miljard miliardo miliardi "
    "milyar миллиард миллиарда миллиардов млрд tỷ مليار",
    12: "trillion trillions billionen billones триллион триллиона триллионов",
    15: "quadrillion quadrillions",
}
_SYMBOLS = {
    3: "k 千 천",
    6: "m mn",
    9: "b",
    12: "t tn 兆",
    1: "十",
    2: "百",
    4: "万 萬 만",
    8: "億 亿 억",
}


def _powers(table: dict[int, str]) -> dict[str, int]:
    return {
        unicodedata.normalize("NFKC", word): power
        for power, words in table.items()
        for word in words.split()
    }


WORDS = _powers(_WORDS)
POWERS = WORDS | _powers(_SYMBOLS)
# Characters right after a number, as a pattern. 千克 is a kilogram, and 兆 before a unit a mega.
CHARACTERS = "[十百千]?[万萬만億亿억]|[百千천](?![克米瓦字卡赫帕焦分])|兆(?![字赫比瓦])"
