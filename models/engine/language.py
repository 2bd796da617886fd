"""Whether the model can read a text's language: by script first, by n-grams only where the script does not tell.

A model that was made for English answers anything, and its answer to German is a guess. What it cannot read is
marked instead. Cheap: most texts are settled by their letters and a few common words; only doubtful ones reach the
n-gram detector (lingua), which is loaded when the first of them comes.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Final

from models.backbones import DEFAULT_TEXT_BACKBONE

if TYPE_CHECKING:
    from lingua import LanguageDetector

__all__ = ["LanguageGuard", "languages_of"]

# Backbones whose languages are known; of any other, nothing is assumed.
_KNOWN: Final = {
    DEFAULT_TEXT_BACKBONE: ("en",),
    "sentence-transformers/all-MiniLM-L6-v2": ("en",),
    "ProsusAI/finbert": ("en",),
    "answerdotai/ModernBERT-base": ("en",),
    "answerdotai/ModernBERT-large": ("en",),
}
# Script to the languages written in it, of those that news is published in.
_SCRIPTS: Final = (
    (re.compile(r"[぀-ヿ]"), ("ja",)),
    (re.compile(r"[가-힣]"), ("ko",)),
    (re.compile(r"[㐀-鿿豈-﫿]"), ("zh", "ja")),
    (re.compile(r"[Ѐ-ӿ]"), ("ru", "uk", "bg", "sr", "kk", "be", "mk", "mn")),
    (re.compile(r"[؀-ۿݐ-ݿ]"), ("ar", "fa", "ur")),
    (re.compile(r"[֐-׿]"), ("he", "yi")),
    (re.compile(r"[ऀ-ॿ]"), ("hi", "mr", "ne")),
    (re.compile(r"[Ͱ-Ͽἀ-῿]"), ("el",)),
    (re.compile(r"[฀-๿]"), ("th",)),
)
# Languages in Latin script that the detector tells apart; more of them make it slower and less sure.
_LATIN: Final = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "id", "vi")
_ENGLISH: Final = re.compile(
    r"\b(?:the|of|and|to|for|with|on|as|at|by|from|after|its|is|are|was|will|has|have|says|said|over|up|down|this|that|"
    r"shares?|stocks?|markets?|earnings|profits?|sales|quarter|results|price|target|buy|sell|falls?|rises?|raises?|"
    r"cuts?|beats|misses|upgraded?|downgraded?|declares|dividend|higher|lower|week|year|today|new|deal|growth|call)\b",
    re.IGNORECASE,
)
_NOISE: Final = re.compile(r"https?://\S+|[$#@]\w+|&\w+;|<[^<>]{0,200}>")
_LETTERS: Final = re.compile(r"[^\W\d_]")
_WORDS: Final = re.compile(r"[^\W\d_]{2,}")
_UNLIKELY: Final = 0.03
_LEAST_WORDS: Final = 3
_LOOKED_AT: Final = 2_000


def languages_of(text_backbone: str, configured: str = "") -> tuple[str, ...]:
    """ISO 639-1 codes that a backbone reads: as configured (comma-separated), else as known; empty: any language."""
    given = tuple(code.strip().lower() for code in configured.split(",") if code.strip())
    return () if given == ("any",) else given or _KNOWN.get(text_backbone, ())


class LanguageGuard:
    """Says of a text that it is in a language outside `languages` (ISO 639-1; empty: nothing is outside)."""

    def __init__(self, languages: tuple[str, ...]) -> None:
        self.languages = frozenset(languages)

    @cached_property
    def _detector(self) -> LanguageDetector:
        from lingua import IsoCode639_1, LanguageDetectorBuilder

        wanted = dict.fromkeys(code.upper() for code in (*_LATIN, *sorted(self.languages)))
        codes = [getattr(IsoCode639_1, code) for code in wanted if hasattr(IsoCode639_1, code)]
        return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()

    def load(self) -> None:
        """Load the detector, which takes seconds in which no other thread runs, before it is wanted."""
        if self.languages:
            self._detector.compute_language_confidence_values("whatever")

    def unreadable(self, text: str) -> str | None:
        """The language (ISO 639-1) of a text that the model cannot read; None when it can, or when nothing tells.

        A script of several languages gives its commonest. Too short a text in Latin script is taken as readable.
        """
        if not self.languages:
            return None
        text = _NOISE.sub(" ", text[:_LOOKED_AT])
        letters = len(_LETTERS.findall(text))
        if not letters:
            return None
        # A clause in another script amid English (a company's own name) does not make the text unreadable.
        for script, languages in _SCRIPTS:
            if len(script.findall(text)) * 3 > letters:
                return None if self.languages & set(languages) else languages[0]
        words = _WORDS.findall(text)
        if len(words) < _LEAST_WORDS:
            return None
        if "en" in self.languages and len(_ENGLISH.findall(text)) * 8 >= len(words):
            return None
        found = self._detector.compute_language_confidence_values(text)
        readable = sum(value.value for value in found if value.language.iso_code_639_1.name.lower() in self.languages)
        if readable >= _UNLIKELY or not found:
            return None
        return str(found[0].language.iso_code_639_1.name.lower())
