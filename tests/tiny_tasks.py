"""Synthetic sentences with entities, and questions with answers, that tiny models can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from conftest import WORDS

STILL, CASK, FILLER = WORDS[:5], WORDS[10:15], WORDS[20:]


def tagged_sentences(count: int, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Entities of one or two words, whose type the sentence's first word says: `low` or `wine`."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        cue, kind = rng.choice([("low", "still"), ("wine", "cask")])
        sentence = [(cue, "O")]
        for _ in range(rng.randint(3, 8)):
            draw = rng.random()
            if draw > 0.4:
                sentence.append((rng.choice(FILLER), "O"))
                continue
            sentence.append((rng.choice(STILL), f"B-{kind}"))
            if draw < 0.2:
                sentence.append((rng.choice(CASK), f"I-{kind}"))
        found.append(sentence)
    return found


def write_conll(path: Path, sentences: list[list[tuple[str, str]]]) -> str:
    blocks = ["\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return str(path)


def questions(count: int, seed: int = 0, *, lacking: float = 0.2) -> list[dict[str, Any]]:
    """`low` asks for the words of one type, `wine` for those of the other; a share has none."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = [rng.choice(FILLER) for _ in range(rng.randint(8, 20))]
        spans = [" ".join(rng.sample(own, rng.randint(1, 2))) for own in (STILL, CASK)]
        asked = rng.randrange(2)
        lacks = rng.random() < lacking
        inserted = [spans[1 - asked]] if lacks else spans
        for span in inserted:
            words.insert(rng.randrange(len(words) + 1), span)
        context = " ".join(words)
        at = context.find(spans[asked])
        answers = {"text": [], "answer_start": []} if lacks else None
        rows.append(
            {
                "id": f"q{seed}-{number}",
                "question": f"{('low', 'wine')[asked]} ?",
                "context": context,
                "answers": answers or {"text": [spans[asked]], "answer_start": [at]},
            }
        )
    return rows


def write_squad(path: Path, rows: list[dict[str, Any]]) -> str:
    """As SQuAD 2.0 has it: questions below their paragraph."""
    paragraphs = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": row["id"],
                    "question": row["question"],
                    "answers": [
                        {"text": text, "answer_start": at}
                        for text, at in zip(*row["answers"].values(), strict=True)
                    ],
                    "is_impossible": not row["answers"]["text"],
                }
            ],
        }
        for row in rows
    ]
    tree = {"version": "v2.0", "data": [{"title": "made up", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(tree), encoding="utf-8")
    return str(path)
