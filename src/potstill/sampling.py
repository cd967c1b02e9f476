"""Some of a run's texts as batches, to measure a model by."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.batches import Batch
from potstill.context import Context
from potstill.data import Examples, Tokens
from potstill.distributed import own_device
from potstill.micro_batches import MicroBatches
from potstill.recipe import Masking
from potstill.task_losses import TEXTS


def sampled_batches(
    context: Context, side: Tokens | Examples, texts: int, epoch: int = 0
) -> Iterator[Batch]:
    """So many texts at most, spread over a side, on this process's device.

    Args:
        epoch: whose masks masked LM gets.
    """
    masker = context.masker(Masking()) if context.task == "masked_lm" else None
    cut = MicroBatches(
        TEXTS,
        TEXTS,
        pad_id=int(context.tokenizer.pad_token_id or 0),
        masker=masker,
        seed=context.seed,
        rank=0,
        world=1,
    )
    for batch in cut.spread(side, texts, epoch):
        yield batch.to(own_device())
