"""The pieces of a tokenizer, as tokenizer.json has them: which need each other, and the file cut to
some of them.

A text whose pieces are all kept is cut as before, since what goes was never chosen in it:

- WordPiece takes the longest piece that fits; with fewer of them it is the same one.
- BPE merges the pair of lowest rank; all merges that were done are still there, so that each time
  the same one is the lowest. For this, the pieces that a kept one is merged from are kept too.
- Unigram takes the likeliest way to cut; of fewer ways it is the same one. The penalty of an
  unknown character is counted from the lowest score, whose piece is therefore kept.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

KINDS = ("WordPiece", "BPE", "Unigram")
# How byte-level tokenizers write the bytes that are neither printable ASCII nor above 0x7F.
_CONTROL = range(0x100, 0x122)


@dataclass(frozen=True, eq=False)
class Pieces:
    """A tokenizer's pieces and their ids.

    Attributes:
        tree: tokenizer.json.
        ids: piece -> id, of the model's own pieces.
        added: token -> id, of added tokens that are none of the model's own.
    """

    tree: dict[str, Any]
    ids: dict[str, int]
    added: dict[str, int]

    @staticmethod
    def of(backend: Tokenizer, name: str) -> Pieces:
        """The pieces of a tokenizer; `name` is what messages call its model.

        Raises:
            ValueError: a kind of tokenizer that can't be trimmed.
        """
        tree = json.loads(backend.to_str())
        model = tree["model"]
        if model["type"] not in KINDS:
            raise ValueError(
                f"{name}: its tokenizer is of the type {model['type']}, and only the vocabularies "
                f"of {', '.join(KINDS[:-1])} and {KINDS[-1]} can be trimmed: leave "
                "trim_vocabulary out"
            )
        if model["type"] == "BPE" and (
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        ):
            raise ValueError(
                f"{name}: its tokenizer is a BPE that marks where words go on or end, which can't "
                "be trimmed: leave trim_vocabulary out"
            )
        listed = model["vocab"]
        ids = (
            {piece: number for number, (piece, _) in enumerate(listed)}
            if model["type"] == "Unigram"
            else dict(listed)
        )
        added = {t["content"]: t["id"] for t in tree["added_tokens"] if t["content"] not in ids}
        return Pieces(tree, ids, added)

    @property
    def kind(self) -> str:
        return str(self.tree["model"]["type"])

    @cached_property
    def all_ids(self) -> dict[str, int]:
        """Token -> id, added ones included."""
        return {**self.ids, **self.added}

    @cached_property
    def names(self) -> dict[int, str]:
        """Id -> token."""
        return {number: token for token, number in self.all_ids.items()}

    @cached_property
    def unknown(self) -> int | None:
        """The id of what stands for unknown characters."""
        model = self.tree["model"]
        if self.kind == "Unigram":
            found = model["unk_id"]
            return None if found is None else int(found)
        return self.all_ids.get(model.get("unk_token") or "")

    @cached_property
    def bytes(self) -> frozenset[int]:
        """Ids of the pieces that stand for a byte, of tokenizers that fall back on bytes."""
        model = self.tree["model"]
        names = [f"<0x{value:02X}>" for value in range(256)] if model.get("byte_fallback") else []
        if self._byte_level:
            names += [piece for piece in self.ids if len(piece) == 1]
        return frozenset(self.ids[name] for name in names if name in self.ids)

    @cached_property
    def foreign(self) -> frozenset[int]:
        """Ids of what a text in a script that the tokenizer doesn't know becomes."""
        fallback = [
            number
            for number in self.bytes
            if len(name := self.names[number]) > 1
            or (ord(name) > 0x7F and ord(name) not in _CONTROL)
        ]
        return frozenset(fallback if self.unknown is None else [*fallback, self.unknown])

    @property
    def _byte_level(self) -> bool:
        steps = [self.tree["pre_tokenizer"], self.tree["normalizer"]]
        return any(step["type"] == "ByteLevel" for one in steps for step in _flat(one))

    @cached_property
    def always(self) -> frozenset[int]:
        """Ids that no trimming takes away: added and special tokens, bytes, what is unknown."""
        found = {token["id"] for token in self.tree["added_tokens"]} | self.bytes
        found |= {self.all_ids[name] for name in _named(self.tree["post_processor"])}
        if self.unknown is not None:
            found.add(self.unknown)
        padding = self.tree["padding"]
        if padding is not None and padding["pad_id"] in self.names:
            found.add(padding["pad_id"])
        if self.kind == "Unigram":
            scores = [score for _, score in self.tree["model"]["vocab"]]
            found.add(scores.index(min(scores)))
        return frozenset(found)

    def needed(self, number: int) -> set[int]:
        """A piece and what it needs: those it is merged from (BPE), its single characters.

        With its characters a word whose own piece goes falls apart, and is not unknown.
        """
        piece = self.names[number]
        if number in self.always:
            return {number}
        parts = self._merged(piece) if self.kind == "BPE" else self._characters(piece)
        return {number, *(self.ids[part] for part in parts if part in self.ids)}

    def _characters(self, piece: str) -> Iterator[str]:
        prefix = self.tree["model"].get("continuing_subword_prefix") or ""
        for character in piece.removeprefix(prefix):
            yield character
            yield prefix + character

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {(a, b): rank for rank, (a, b) in enumerate(self.tree["model"]["merges"])}

    def _merged(self, piece: str) -> set[str]:
        """All that stands there at some time while the piece is merged from its characters."""
        symbols = list(piece)
        found = set(symbols)
        while len(symbols) > 1:
            known = [
                (self._ranks[pair], place)
                for place, pair in enumerate(pairwise(symbols))
                if pair in self._ranks
            ]
            if not known:
                break
            _, place = min(known)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            found.add(symbols[place])
        return found

    def order(self, kept: Iterable[int], pad: int | None) -> list[int]:
        """The kept ids in their new order: entry i is the old id of the new id i.

        Ids keep their order. The padding token keeps its very id if so many pieces are left, and
        added tokens that are none of the model's own stay behind all others.
        """
        chosen = set(kept)
        own = sorted(chosen & set(self.ids.values()) - {pad})
        if pad is not None and pad in self.ids.values():
            own.insert(min(pad, len(own)), pad)
        return own + sorted(chosen & set(self.added.values()))

    def cut(self, order: Sequence[int]) -> dict[str, Any]:
        """tokenizer.json with the pieces of `order` alone, numbered so."""
        new = {old: number for number, old in enumerate(order)}
        tree = copy.deepcopy(self.tree)
        model = tree["model"]
        own = {piece for piece, number in self.ids.items() if number in new}
        if self.kind == "Unigram":
            model["vocab"] = [model["vocab"][old] for old in order if self.names[old] in own]
            model["unk_id"] = None if self.unknown is None else new[self.unknown]
        else:
            model["vocab"] = {self.names[old]: new[old] for old in order if self.names[old] in own}
        if self.kind == "BPE":
            model["merges"] = [
                [a, b] for a, b in model["merges"] if a in own and b in own and a + b in own
            ]
        for token in tree["added_tokens"]:
            token["id"] = new[token["id"]]
        tree["added_tokens"].sort(key=lambda token: token["id"])
        _renumber(tree["post_processor"], new)
        if tree["padding"] is not None:
            padding = tree["padding"]
            padding["pad_id"] = new.get(padding["pad_id"], padding["pad_id"])
        return tree


def _flat(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A step of tokenizer.json, or those of a sequence."""
    if step is None:
        return
    parts = [*step.get("pretokenizers", []), *step.get("normalizers", [])]
    parts += step.get("processors", [])
    yield step
    for part in parts:
        yield from _flat(part)


def _named(processor: dict[str, Any] | None) -> Iterator[str]:
    """The tokens that a post-processor adds."""
    for step in _flat(processor):
        yield from (step[key][0] for key in ("sep", "cls") if key in step)
        for token in step.get("special_tokens", {}).values():
            yield from token["tokens"]


def _renumber(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    for step in _flat(processor):
        for key in ("sep", "cls"):
            if key in step:
                step[key] = [step[key][0], new[step[key][1]]]
        for token in step.get("special_tokens", {}).values():
            token["ids"] = [new[number] for number in token["ids"]]
