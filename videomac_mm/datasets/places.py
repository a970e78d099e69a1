"""Items that are a function of their place in a run, and the sampler that orders the places."""

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch import Tensor
from torch.utils.data import Sampler

from videomac_mm.randomness import seed_of, seeded
from videomac_mm.registry import DATA_SAMPLERS


class Place(int):
    """The index of an item, which also knows the run's seed and the epoch.

    A wrapper such as ``RepeatDataset`` or ``ConcatDataset`` computes the index of its own data
    set from it, by ``%`` or ``-``. The result is again a place, and draws what the original would.

    Args:
        index: of the item in its data set.
        seed: of the run.
        epoch: from 0.
        origin: index in the outermost data set. Defaults to None (``index``).
    """

    seed: int
    epoch: int
    origin: int

    def __new__(cls, index: int, seed: int, epoch: int, origin: int | None = None) -> 'Place':
        place = super().__new__(cls, index)
        place.seed, place.epoch = seed, epoch
        place.origin = int(index) if origin is None else origin
        return place

    def __reduce__(self) -> tuple:
        return Place, (int(self), self.seed, self.epoch, self.origin)

    def __mod__(self, other: int) -> 'Place':
        return Place(int(self) % other, self.seed, self.epoch, self.origin)

    def __sub__(self, other: int) -> 'Place':
        return Place(int(self) - other, self.seed, self.epoch, self.origin)

    def seed_of_try(self, attempt: int) -> int:
        """The seed of the item's first draw (0), or of one that takes its place."""
        return seed_of('item', self.seed, self.epoch, self.origin, attempt)


class PlacedItems:
    """Mixin of data sets derived from ``BaseDataset``: an item is a function of its place.

    Asked for a `Place`, the data set seeds the random numbers of Python, NumPy and torch before
    its pipeline runs, and puts them back afterwards. So the item depends neither on the worker
    that makes it nor on what was drawn before. An item that cannot be had is replaced by
    another one, which depends on the place alone, too. Plain indices work as in ``BaseDataset``.
    """

    def __getitem__(self, idx: int) -> Any:
        if self.test_mode or not isinstance(idx, Place):
            return super().__getitem__(idx)
        if not self._fully_initialized:
            self.full_init()
        index = int(idx)
        for attempt in range(self.max_refetch + 1):
            with seeded(idx.seed_of_try(attempt)):
                if attempt:
                    index = int(np.random.randint(len(self)))
                item = self.prepare_data(index)
            if item is not None:
                return item
        raise RuntimeError(
            f'no usable item for index {int(idx)} in epoch {idx.epoch}, nor in max_refetch='
            f'{self.max_refetch} others that were tried in its place'
        )


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """The order of a run, in which any place is found at once.

    The items of an epoch come in an order that depends on seed and epoch. Every step takes the
    next ``batch_size`` items for each process, those of rank 0 first. So the step has the same
    items for any number of processes whose batches add up to the same size, and a run goes on
    anywhere without repeating or decoding what came before. Under
    ``videomac_mm.EpochBasedTrainLoop`` the sampler ends with the epoch, and under
    ``videomac_mm.IterBasedTrainLoop`` it goes on with the next one. With the loops of mmengine it
    is an ordinary sampler of one process, and they resume as they do.

    The last items of an epoch may be too few for a whole batch. With ``drop_last`` of the data
    loader they are left out. Otherwise the processes share them, and the first items of the epoch
    fill up what is missing for equal shares.

    Items must depend on their place alone, as those of `PlacedItems` do; others come in the same
    order, but with random draws of their own.

    Args:
        dataset: has a length.
        shuffle: draw a new order for each epoch. Defaults to True: otherwise by index.
        seed: of the run. Defaults to None: 0, until a loop gives the run's own.

    Raises:
        ValueError: if the data set is empty.
        RuntimeError: while iterating in several processes, if no loop has told the batch size.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        if len(dataset) == 0:
            raise ValueError('ResumableSampler needs a data set with at least one item, got none')
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed or 0
        self.rank, self.world_size = get_dist_info()
        self.batch_size: int | None = None
        self.drop_last = False
        self.endless = False
        self.epoch = 0
        self.first = 0  # where the epoch begins: so many of its items, of all ranks, are done
        self._orders: dict[tuple[int, int], Tensor] = {}

    def bind(self, batch_size: int, drop_last: bool, endless: bool) -> None:
        """Learn from the loop what a step takes.

        Args:
            batch_size: of one process.
            drop_last: leave out the items of an epoch that do not fill a batch.
            endless: go on with the next epoch.
        """
        self.batch_size, self.drop_last, self.endless = batch_size, drop_last, endless

    def start(self, seed: int, epoch: int, first: int) -> None:
        """Begin at a place.

        Args:
            seed: of the run.
            epoch: from 0.
            first: how many items of the epoch are done, by all processes together.
        """
        self.seed, self.epoch, self.first = seed, epoch, first

    def set_epoch(self, epoch: int) -> None:
        """Begin at the start of an epoch, unless the sampler is in it already."""
        if epoch != self.epoch and not self.endless:
            self.epoch, self.first = epoch, 0

    def __len__(self) -> int:
        """Items of a whole epoch that this process gets."""
        if self.batch_size is None or self.endless:
            return len(self.dataset)
        whole, left = divmod(len(self.dataset), self.batch_size * self.world_size)
        return whole * self.batch_size + (0 if self.drop_last else -(-left // self.world_size))

    def __iter__(self) -> Iterator[Place]:
        if self.batch_size is None and self.world_size > 1:
            raise RuntimeError(
                f'ResumableSampler does not know the batch size in {self.world_size} processes: '
                'train with videomac_mm.EpochBasedTrainLoop or videomac_mm.IterBasedTrainLoop, '
                'or call bind'
            )
        size, epoch, first = len(self.dataset), self.epoch, self.first
        while True:
            share, left = self.batch_size or 1, size - first
            if not self.endless and left < share * self.world_size:
                if left <= 0 or self.drop_last:
                    return
                share = -(-left // self.world_size)
            start = first + self.rank * share
            for position in range(start, start + share):
                passed, position = divmod(position, size)
                # What fills up the last shares of an epoch belongs to it.
                now = epoch + passed if self.endless else epoch
                yield Place(int(self._order(now)[position]), self.seed, now)
            first += share * self.world_size
            if self.endless:
                passed, first = divmod(first, size)
                epoch += passed

    def _order(self, epoch: int) -> Tensor:
        """Indices in the order of an epoch, (N,) int64."""
        key = self.seed, epoch
        if key not in self._orders:
            size = len(self.dataset)
            generator = torch.Generator().manual_seed(seed_of('order', *key))
            order = (
                torch.randperm(size, generator=generator) if self.shuffle else torch.arange(size)
            )
            # A batch may reach into the next epoch: two are kept.
            self._orders = dict([*self._orders.items()][-1:]) | {key: order}
        return self._orders[key]
