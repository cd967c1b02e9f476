"""The subword tokens of a tokenizer.json: which need each other, and the file cut to some of them.

A text whose tokens are all kept is tokenized as before, since what goes was never chosen in it:

- WordPiece takes the longest token that fits; with fewer of them it is the same one.
- BPE merges the pair of lowest rank; all merges that were done are still there, so that each time
  the same one is the lowest. For this, the tokens that a kept one is merged from are kept too.
- Unigram takes the likeliest segmentation; of fewer it is the same one. The penalty of an unknown
  character is counted from the lowest score, whose token is therefore kept.
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
    """Hold a tokenizer's subword tokens and their ids.

    Attributes:
        tree: tokenizer.json.
        ids: token -> id, of the model's own tokens.
        added: token -> id, of added tokens that the model itself does not have.
    """

    tree: dict[str, Any]
    ids: dict[str, int]
    added: dict[str, int]

    @staticmethod
    def of(backend: Tokenizer, name: str) -> Pieces:
        """Read the subword tokens of a tokenizer; `name` is the model's, for messages.

        Raises:
            ValueError: a kind of tokenizer that can't be trimmed.
        """
        tree = json.loads(backend.to_str())
        model, problem = tree["model"], ""
        if model["type"] not in KINDS:
            problem = f"its tokenizer has the type {model['type']}, not {' or '.join(KINDS)}"
        elif model["type"] == "BPE" and (
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        ):
            problem = "its tokenizer is a BPE that marks continuations or ends of words"
        if problem:
            raise ValueError(
                f"{name}: {problem}, so its vocabulary can't be trimmed. Omit trim_vocabulary."
            )
        ids = model["vocab"]
        if model["type"] == "Unigram":
            ids = {token: number for number, (token, _) in enumerate(ids)}
        added = {t["content"]: t["id"] for t in tree["added_tokens"] if t["content"] not in ids}
        return Pieces(tree, dict(ids), added)

    @property
    def kind(self) -> str:
        return str(self.tree["model"]["type"])

    @cached_property
    def all_ids(self) -> dict[str, int]:
        """Map tokens to ids, added ones included."""
        return {**self.ids, **self.added}

    @cached_property
    def names(self) -> dict[int, str]:
        """Map ids to tokens."""
        return {number: token for token, number in self.all_ids.items()}

    @cached_property
    def unknown(self) -> int | None:
        """Return the id of the token for unknown characters."""
        model = self.tree["model"]
        if self.kind == "Unigram":
            return None if model["unk_id"] is None else int(model["unk_id"])
        return self.all_ids.get(model.get("unk_token") or "")

    @cached_property
    def bytes(self) -> frozenset[int]:
        """Return the ids of the tokens for single bytes, where a tokenizer falls back on bytes."""
        fallback = self.tree["model"].get("byte_fallback")
        names = [f"<0x{value:02X}>" for value in range(256)] if fallback else []
        steps = [*_flat(self.tree["pre_tokenizer"]), *_flat(self.tree["normalizer"])]
        if any(step["type"] == "ByteLevel" for step in steps):
            names += [token for token in self.ids if len(token) == 1]
        return frozenset(self.ids[name] for name in names if name in self.ids)

    @cached_property
    def foreign(self) -> frozenset[int]:
        """Return the ids that a text in a script unknown to the tokenizer becomes."""
        fallback = {
            number
            for number in self.bytes
            if len(name := self.names[number]) > 1
            or (ord(name) > 0x7F and ord(name) not in _CONTROL)
        }
        return frozenset(fallback if self.unknown is None else {*fallback, self.unknown})

    @cached_property
    def always(self) -> frozenset[int]:
        """Return the ids that every trimming keeps: added and special tokens, bytes, unknown."""
        found = {token["id"] for token in self.tree["added_tokens"]} | self.bytes
        for ids, start in _numbered(self.tree["post_processor"]):
            found.update(ids[start:])
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
        """Return a token and what it needs: those it is merged from (BPE), its characters.

        With its characters a word whose own token goes falls apart, and is not unknown.
        """
        token = self.names[number]
        if number in self.always:
            return {number}
        parts = self._merged(token) if self.kind == "BPE" else self._characters(token)
        return {number, *(self.ids[part] for part in parts if part in self.ids)}

    def _characters(self, token: str) -> Iterator[str]:
        prefix = self.tree["model"].get("continuing_subword_prefix") or ""
        for character in token.removeprefix(prefix):
            yield from (character, prefix + character)

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {(a, b): rank for rank, (a, b) in enumerate(self.tree["model"]["merges"])}

    def _merged(self, token: str) -> set[str]:
        """Return all intermediate tokens of merging a token from its characters."""
        symbols = list(token)
        found = set(symbols)
        while len(symbols) > 1:
            pairs = enumerate(pairwise(symbols))
            known = [(self._ranks[pair], at) for at, pair in pairs if pair in self._ranks]
            if not known:
                break
            _, at = min(known)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            found.add(symbols[at])
        return found

    def order(self, kept: Iterable[int], pad: int | None) -> list[int]:
        """Return the kept ids in their new order: entry i is the old id of the new id i.

        Ids keep their order. The padding token keeps its id if enough tokens are left, and added
        tokens that the model itself does not have stay behind all others.
        """
        chosen, ids = set(kept), set(self.ids.values())
        own = sorted(chosen & ids - {pad})
        if pad in ids:
            own.insert(min(pad, len(own)), pad)
        return own + sorted(chosen & set(self.added.values()))

    def cut(self, order: Sequence[int]) -> dict[str, Any]:
        """Return tokenizer.json with the tokens of `order` alone, under their new ids."""
        new = {old: number for number, old in enumerate(order)}
        tree = copy.deepcopy(self.tree)
        model, padding = tree["model"], tree["padding"]
        own = {self.names[old]: new[old] for old in order if self.names[old] in self.ids}
        if self.kind == "Unigram":
            model["vocab"] = [model["vocab"][self.ids[token]] for token in own]
            model["unk_id"] = None if self.unknown is None else new[self.unknown]
        else:
            model["vocab"] = own
        if self.kind == "BPE":
            merges = model["merges"]
            model["merges"] = [[a, b] for a, b in merges if {a, b, a + b} <= own.keys()]
        for token in tree["added_tokens"]:
            token["id"] = new[token["id"]]
        tree["added_tokens"].sort(key=lambda token: token["id"])
        for ids, start in _numbered(tree["post_processor"]):
            ids[start:] = [new[number] for number in ids[start:]]
        if padding is not None:
            padding["pad_id"] = new.get(padding["pad_id"], padding["pad_id"])
        return tree


def _flat(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield a step of tokenizer.json, and those of a sequence."""
    if step is not None:
        yield step
        for key in ("pretokenizers", "normalizers", "processors"):
            for part in step.get(key, []):
                yield from _flat(part)


def _numbered(processor: dict[str, Any] | None) -> Iterator[tuple[list[Any], int]]:
    """Yield each list of a post-processor that holds ids, and where the ids start in it."""
    for step in _flat(processor):
        yield from ((step[key], 1) for key in ("sep", "cls") if key in step)
        yield from ((token["ids"], 0) for token in step.get("special_tokens", {}).values())
