"""A tiny tokenizer of each family's own class, its special tokens where its models expect them."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    DebertaV2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from conftest import PIECES, SPECIAL, WORDS, sentences

ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
EURO_SPECIAL = ["<|pad|>", "<|unk|>", "<|begin_of_text|>", "<|end_of_text|>", "<|mask|>"]


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    made: Any
    match name:
        case "bert" | "distilbert" | "electra" | "nomic_bert":
            made = BertTokenizer(vocab=_numbered([*SPECIAL, *WORDS, *PIECES]))
        case "mpnet":
            special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
            made = MPNetTokenizer(vocab=_numbered([*special, *WORDS, *PIECES]))
        case "roberta":
            made = RobertaTokenizer(**_byte_pairs(ROBERTA_SPECIAL))
        case "xlm-roberta":
            made = XLMRobertaTokenizer(vocab=_unigrams(["<s>", "<pad>", "</s>", "<unk>"], "<mask>"))
        case "camembert":
            made = CamembertTokenizer(vocab=_unigrams(["<s>", "<pad>", "</s>", "<unk>"], "<mask>"))
        case "deberta-v2":
            made = DebertaV2Tokenizer(
                vocab=_unigrams(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[MASK]"), unk_id=3
            )
        case "modernbert":
            named = ("pad", "unk", "cls", "sep", "mask")
            special = {f"{key}_token": f"[{key.upper()}]" for key in named}
            made = _wrapped(_byte_pairs(SPECIAL), "[CLS]", "[SEP]", special)
        case "eurobert":
            named = ("pad", "unk", "bos", "eos", "mask")
            special = {f"{key}_token": t for key, t in zip(named, EURO_SPECIAL, strict=True)}
            made = _wrapped(_byte_pairs(EURO_SPECIAL), EURO_SPECIAL[2], EURO_SPECIAL[3], special)
    made.model_max_length = 64
    return made


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _unigrams(special: list[str], mask: str) -> list[tuple[str, float]]:
    words = [(f"▁{word}", -3.0) for word in WORDS]
    letters = [(letter, -8.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return [(token, 0.0) for token in special] + words + letters + [(mask, 0.0)]


def _byte_pairs(special: list[str]) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(100), trainer)
    model = _json(tokenizer)["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _wrapped(
    parts: dict[str, Any], first: str, last: str, special: dict[str, str]
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(**parts))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(first, parts["vocab"][first]), (last, parts["vocab"][last])],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _json(tokenizer: Tokenizer) -> Any:
    import json

    return json.loads(tokenizer.to_str())
