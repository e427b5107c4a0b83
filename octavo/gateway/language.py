"""Which language a text is in: by script, and within a script by its commonest words.

For rules, not for linguists: it tells a sentence's language (`LANGUAGES`) in a fraction of a
millisecond, and says nothing where a text has too few words or mixes languages. Danish and
Norwegian are often not told apart, and Serbian in Latin letters is not told at all.
"""

# Letters that look alike are what tells languages apart.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from collections import Counter

MAX_CHARS = 2000
"""Looked at, from the beginning."""

MIN_WORDS = 3
MIN_SHARE = 0.12
"""Of a text's words that must be common ones of its language."""

MIN_LEAD = 1.2
"""Times what the second language scores."""

_SCRIPTS: dict[str, str] = {
    "Latin": "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ",
    "Cyrillic": "\u0400-\u04ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Devanagari": "\u0900-\u097f",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff",
    "ja": "\u3041-\u30ff",
    "ko": "\uac00-\ud7af\u1100-\u11ff",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "he": "\u0590-\u05ff",
    "th": "\u0e00-\u0e7f",
    "ka": "\u10a0-\u10ff",
    "hy": "\u0530-\u058f",
    "bn": "\u0980-\u09ff",
    "pa": "\u0a00-\u0a7f",
    "gu": "\u0a80-\u0aff",
    "ta": "\u0b80-\u0bff",
    "te": "\u0c00-\u0c7f",
    "kn": "\u0c80-\u0cff",
    "ml": "\u0d00-\u0d7f",
}
"""Scripts of several languages by their names, of one language by its code."""

_WORDS: dict[str, dict[str, str]] = {
    "Latin": {
        "en": "the of and to in is that it for was on are with as be this by from have not you "
        "what which how can do my i me please should all or",
        "de": "der die das und ist nicht ein eine zu von mit den auf für im dem des sich auch es "
        "ich sie wie kann bei werden sind mir bitte wir einen aus haben oder",
        "fr": "le la les et est des un une du que pour dans qui sur pas il elle nous vous avec au "
        "ce je comment sont de en ou moi tous ne",
        "es": "el la los las de y que en un una es por con para no se lo del su al como más qué "
        "cómo está mi me todos los o son",
        "pt": "o a os as de e que em um uma é por com para não se do da no na como mais dos das ao "
        "você são meu todos os ou me",
        "it": "il la le gli di e che è un una per con non del della dei delle nel sono come si più "
        "questo ho perché mi tutti i in ed o",
        "nl": "de het een en van is dat niet op te in met voor zijn aan er ook ik hoe wat wordt "
        "kan naar bij mijn alle of om",
        "sv": "och att det är en ett som på för med inte av den till jag har kan hur om så vad mig "
        "alla de eller i",
        "da": "og at det er en et som på for med ikke af den til jeg har kan hvordan de så hvad "
        "mig alle eller i hvert efter blive ud",
        "no": "og at det er en et som på for med ikke av den til jeg har kan hvordan de så hva meg "
        "alle eller i hvert etter bli ut",
        "fi": "ja on ei se että hän oli mutta kun niin ovat tai mitä miten joka olla minä myös "
        "kuin ole voi kaikki minun sekä heidän toisiaan",
        "pl": "i w nie na się z że do jest to jak o co po dla czy są od przez ale jego które oraz "
        "mi wszyscy pod swej",
        "cs": "a je v se na že to s z do o i jako pro ale jsou by si tak jak co nebo které být mi "
        "všichni sobě rovní ve",
        "tr": "ve bir bu da de için ile ne mi olarak daha çok gibi var ben nasıl olan kadar değil "
        "o her bütün bana",
        "ro": "și de la în este nu cu un o pe că din care pentru mai să sunt ce ca al cum mi toate "
        "ele unele față",
        "hu": "a az és hogy nem is egy van ez meg mint de azt volt csak ki már hogyan vagy ha "
        "minden kell",
        "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada saya ke adalah ada bisa "
        "apa bagaimana atau semua orang",
        "vi": "là và của có không được cho một các trong người với này đã những để như tôi bạn tất "
        "cả phải nhau ra",
    },
    "Cyrillic": {
        "ru": "и в не на что с как это по он я но все так его то из к у за вы был мне для или их",
        "uk": "і в не на що з як це та до у він я але за від для є бути всі мені або й їх",
        "bg": "и на да не се от за е в с че са по как като това си той всички ми или във",
        "sr": "и је у да се на не што од за су са као сва мени или како би једни",
    },
    "Arabic": {
        "ar": "في من على أن إلى هذا التي الذي لا ما هو هي مع عن كان كل كيف أو قد جميع",
        "fa": "و که از به در این است را با برای آن یک می ها های هم تا چگونه تمام اند دارند",
        "ur": "ہے کے میں اور کا کی کو سے نے پر یہ ہیں کہ ایک نہیں تمام کیا ہوئے",
    },
    "Devanagari": {
        "hi": "है के में और का को से की यह हैं पर कि नहीं एक सभी क्या मैं ने उन्हें",
        "mr": "आहे आणि या व ते हे आहेत मध्ये नाही एक सर्व काय मी च्या ला त्यांना",
    },
}

_LETTERS: dict[str, str] = {
    **dict.fromkeys("äöüß", "de"),
    **dict.fromkeys("ñ¿¡", "es"),
    **dict.fromkeys("ãõ", "pt"),
    **dict.fromkeys("łąęśźż", "pl"),
    **dict.fromkeys("řěů", "cs"),
    **dict.fromkeys("ğış", "tr"),
    **dict.fromkeys("șță", "ro"),
    **dict.fromkeys("őű", "hu"),
    **dict.fromkeys("ơưạảấầẩẫậắằẳẵặẹẻẽếềểễệọỏốồổỗộớờởỡợụủứừửữự", "vi"),
    **dict.fromkeys("ыэё", "ru"),
    **dict.fromkeys("іїєґ", "uk"),
    **dict.fromkeys("ъ", "bg"),
    **dict.fromkeys("јљњћђџ", "sr"),
    **dict.fromkeys("پچژگ", "fa"),
    **dict.fromkeys("ٹڈںےہھ", "ur"),
    **dict.fromkeys("ळ", "mr"),
}
"""Letters by which a language is known where its words are in doubt; others have some of them."""

_HAN = ("zh", "ja")
LANGUAGES = frozenset(
    {
        *(name for name in _SCRIPTS if len(name) == 2),
        *(name for words in _WORDS.values() for name in words),
        *_HAN,
    }
)
"""ISO 639-1 codes of what can be told."""

_OF_SCRIPT = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_WORD = re.compile(r"[^\W\d_]+(?:[\u0900-\u097f]+[^\W\d_]*)*")


def _index(languages: dict[str, str]) -> dict[str, tuple[tuple[str, float], ...]]:
    """Per word, the languages that have it, and what it says for each: less, the more have it."""
    owners: dict[str, set[str]] = {}
    for language, words in languages.items():
        for word in words.split():
            owners.setdefault(word, set()).add(language)
    return {
        word: tuple((language, 1 / len(found)) for language in sorted(found))
        for word, found in owners.items()
    }


_INDEX = {script: _index(languages) for script, languages in _WORDS.items()}


def language_of(text: str) -> str:
    """The language's code in ISO 639-1, or an empty string where it cannot be told."""
    text = text[:MAX_CHARS]
    script = "Latin" if text.isascii() else _script_of(text)
    if script not in _INDEX:
        return script
    words = _WORD.findall(text.lower())
    if len(words) < MIN_WORDS:
        return ""
    scores: dict[str, float] = {}
    hits: Counter[str] = Counter()
    index = _INDEX[script]
    for word in words:
        for language, weight in index.get(word, ()):
            scores[language] = scores.get(language, 0.0) + weight
            hits[language] += 1
    if not text.isascii():
        for letter in text.lower():
            language = _LETTERS.get(letter, "")
            if language in scores:
                scores[language] += 0.3
    if not scores:
        return ""
    second, best = sorted([(0.0, ""), *((score, name) for name, score in scores.items())])[-2:]
    if hits[best[1]] < max(2, MIN_SHARE * len(words)):
        return ""
    return best[1] if best[0] >= MIN_LEAD * second[0] else ""


def _script_of(text: str) -> str:
    """The script of most letters, or of the only language that writes it; empty: too mixed."""
    counts = Counter({name: len(rule.findall(text)) for name, rule in _OF_SCRIPT.items()})
    num_letters = counts.total()
    if not num_letters:
        return ""
    # Japanese is Chinese characters with its own in between.
    kana, han = counts["ja"], counts["Han"]
    if kana + han > num_letters / 2:
        return "ja" if kana * 10 > han else "zh"
    name, count = counts.most_common(1)[0]
    return name if count > num_letters * 0.6 else ""
