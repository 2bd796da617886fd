"""What serving puts round the model, on held-out texts: the language guard and the linker of companies.

`python benchmarks/guards.py`: of English headlines and posts, how many the guard marks as in a language that the model
cannot read; of the entities that SEntFiN's annotators marked, how many the linker finds in their headlines.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from models.bundle import model_folder
from models.engine.language import LanguageGuard, languages_of
from models.model_file import read_model_file
from models.training.datasets import LabelledText, bundled_path, find_entity, read_labelled, select
from monitor.linking import link


def held_out(name: str) -> list[LabelledText]:
    """Test part of a bundled set."""
    return select(read_labelled(bundled_path(name)), "test")


def guarded(guard: LanguageGuard, name: str) -> dict[str, Any]:
    """How many texts of a set the guard marks, and what it takes the first of them for."""
    texts = [row.text for row in held_out(name)]
    marked = [(found, text) for text in texts if (found := guard.unreadable(text)) is not None]
    return {
        "set": name,
        "texts": len(texts),
        "marked": len(marked),
        "share": round(len(marked) / len(texts), 4),
        "first": [f"{language}: {text}" for language, text in marked[:10]],
    }


def linked(rows: list[LabelledText]) -> dict[str, Any]:
    """Entities found: a mention stands where the name does, or is of the company that the name alone is linked to.

    `known` are names that the linker takes for a company when they stand alone: of others the table holds none.
    """
    found = known = known_found = 0
    missed: list[str] = []
    names = [(row.text, name) for row in rows for name in row.entities]
    for text, name in names:
        start, end = find_entity(text, name) or (-1, -1)
        mentions = link(text)
        alone = {mention.ticker for mention in link(f"{name} shares")}
        hit = any((m.start < end and start < m.end) or m.ticker in alone for m in mentions)
        found += hit
        known += bool(alone)
        known_found += hit and bool(alone)
        if not hit:
            missed.append(name)
    return {
        "entities": len(names),
        "found": found,
        "recall": round(found / len(names), 4),
        "known": known,
        "recall_of_known": round(known_found / max(1, known), 4),
        "missed_first": list(dict.fromkeys(missed))[:20],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", default="", help="ISO 639-1 codes, as the setting model_languages")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    guard = LanguageGuard(languages_of(read_model_file(model_folder("default")).text_backbone, given.languages))
    marked = [guarded(guard, name) for name in ("sentfin", "twitter_sentiment", "twitter_topic")]
    entities = linked(held_out("sentfin"))
    if given.json:
        print(json.dumps({"guard": marked, "linker": entities}, ensure_ascii=False))
        return
    for one in marked:
        print(f"{one['set']}: {one['marked']} of {one['texts']} marked as unreadable ({one['share']:.2%})")
        for text in one["first"]:
            print(f"  {text}")
    print(
        f"linker: {entities['found']} of {entities['entities']} entities found (recall {entities['recall']:.3f}); "
        f"of {entities['known']} whose name it knows, {entities['recall_of_known']:.3f}"
    )
    print(f"  missed, for instance: {', '.join(entities['missed_first'])}")


if __name__ == "__main__":
    main()
