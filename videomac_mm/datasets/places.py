"""Items that are a function of their place in a run, and the sampler that orders the places."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence, Sized
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

    def of_video(self, items_per_video: int) -> 'Place':
        """The place of the video that gives this item and others, where items are numbered video
        by video."""
        return Place(
            int(self) // items_per_video, self.seed, self.epoch, self.origin // items_per_video
        )

    def seed_of_try(self, attempt: int) -> int:
        """The seed of the item's first draw (0), or of one that takes its place."""
        return seed_of('item', self.seed, self.epoch, self.origin, attempt)


class PlacedItems:
    """Mixin of data sets derived from ``BaseDataset``: an item is a function of its place.

    Asked for a `Place`, the data set seeds the random numbers of Python, NumPy and torch before
    its pipeline runs, and puts them back afterwards. So the item depends neither on the worker
    that makes it nor on what was drawn before. An item that cannot be had is replaced by
    another one, which depends on the place alone, too. Plain indices work as in ``BaseDataset``.

    A data set may get several items out of a video that it reads once: ``items_per_video``, in
    which case it has :meth:`read_video`, and items are numbered video by video. All items of a
    video belong to one draw, and those that follow are kept until they are asked for.
    """

    items_per_video = 1

    def __getitem__(self, idx: int) -> Any:
        if self.test_mode or not isinstance(idx, Place):
            return super().__getitem__(idx)
        if not self._fully_initialized:
            self.full_init()
        if self.items_per_video == 1:
            return self._draw(idx, len(self), self.prepare_data)
        place = idx.of_video(self.items_per_video)
        key, part = (place.seed, place.epoch, place.origin), int(idx) % self.items_per_video
        kept = self.__dict__.setdefault('_kept', KeptItems())
        item = kept.take(key, part)
        if item is None:
            num_videos = len(self) // self.items_per_video
            items = self._draw(place, num_videos, self.read_video)
            item = items[part]
            kept.keep(key, part, items)
        return item

    def _draw(self, place: Place, size: int, prepare: Callable[[int], Any]) -> Any:
        index = int(place)
        for attempt in range(self.max_refetch + 1):
            with seeded(place.seed_of_try(attempt)):
                if attempt:
                    index = int(np.random.randint(size))
                item = prepare(index)
            if item is not None:
                return item
        raise RuntimeError(
            f'no usable item for index {int(place)} in epoch {place.epoch}, nor in max_refetch='
            f'{self.max_refetch} others that were tried in its place'
        )

    def read_video(self, index: int) -> Sequence | None:
        """All ``items_per_video`` items of a video, or None if it is unusable."""
        raise NotImplementedError


class KeptItems:
    """Items that came out of a video together with one that was wanted, for later.

    Copies, pickled ones too, begin empty: each process keeps its own. Of more than ``max_videos``
    videos, those that were asked for longest ago go first.
    """

    def __init__(self, max_videos: int = 256) -> None:
        self.max_videos = max_videos
        self.videos: OrderedDict[tuple, dict[int, Any]] = OrderedDict()

    def __reduce__(self) -> tuple:
        return KeptItems, (self.max_videos,)

    def keep(self, key: tuple, part: int, items: Sequence) -> None:
        """Keep the items after ``part``: the sampler asks for those of a video in order."""
        self.videos[key] = dict(list(enumerate(items))[part + 1 :])
        self._forget(key)

    def take(self, key: tuple, part: int) -> Any:
        """The item, if it is here; earlier ones of its video will not be asked for."""
        items = self.videos.get(key, {})
        item = items.pop(part, None)
        if item is not None:
            for earlier in [other for other in items if other < part]:
                del items[earlier]
            self._forget(key)
        return item

    def _forget(self, key: tuple) -> None:
        self.videos.move_to_end(key)
        if not self.videos[key]:
            del self.videos[key]
        while len(self.videos) > self.max_videos:
            self.videos.popitem(last=False)


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

    Where one reading of a video gives several items (``items_per_video`` of the data set), they
    go into different batches: as many videos as fill four batches take turns, and about as many
    begin in each batch as end. So a batch holds items of different videos, and a worker of the
    data loader reads a video once, if four batches divide among the workers. Turns go on from
    epoch to epoch; a video whose turns reach into the next epoch draws what its own epoch says.

    Videos that lie together, such as those of a tar archive (``group_sizes`` of the data set: how
    many of them, in order), stay nearly together. Four archives at a time take turns, a batch
    each; each of them is read from its start to its end, but for windows of 64 videos that are
    shuffled, and archives come in an order of their own in each epoch. So an archive is read by
    one worker of the data loader, if the number of workers divides four.

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
        self.items_per_video = getattr(dataset, 'items_per_video', 1)
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
                yield self._place(now, position)
            first += share * self.world_size
            if self.endless:
                passed, first = divmod(first, size)
                epoch += passed

    def _place(self, epoch: int, position: int) -> Place:
        """What comes at a position of an epoch."""
        parts = self.items_per_video
        if parts == 1 or not self.shuffle:
            video, part = divmod(position, parts)
            return Place(int(self._order(epoch)[video]) * parts + part, self.seed, epoch)
        # The run is one sequence of turns. In each, `num_slots` videos give an item; a slot whose
        # video has given its last one takes the next video, not all slots in the same turn.
        num_videos = len(self.dataset) // parts
        num_slots = min(num_videos, 4 * (self.batch_size or 16) * self.world_size)
        turn, slot = divmod(epoch * len(self.dataset) + position, num_slots)
        passed, part = divmod(turn + slot % parts, parts)
        epoch, number = divmod(passed * num_slots + slot, num_videos)
        return Place(int(self._order(epoch)[number]) * parts + part, self.seed, epoch)

    def _order(self, epoch: int) -> Tensor:
        """Videos (items, where each gives one) in the order of an epoch, (N,) int64."""
        key = self.seed, epoch
        if key not in self._orders:
            size = len(self.dataset) // self.items_per_video
            generator = torch.Generator().manual_seed(seed_of('order', *key))
            groups = getattr(self.dataset, 'group_sizes', [])
            if not self.shuffle:
                order = torch.arange(size)
            elif groups:
                block = (self.batch_size or 16) * self.world_size
                order = grouped_order(groups, block, generator)
            else:
                order = torch.randperm(size, generator=generator)
            # A batch may reach into the next epoch, and beyond it where videos take turns.
            self._orders = dict([*self._orders.items()][-2:]) | {key: order}
        return self._orders[key]


def grouped_order(groups: Sequence[int], block: int, generator: torch.Generator) -> Tensor:
    """A random order in which groups of neighbours stay nearly together.

    Groups, in a random order, form four streams, which take turns to give ``block`` items. Within
    a group, items are shuffled in windows of 64.

    Args:
        groups: numbers of items, in the order of their indices.
        block: items that come from one stream in a row.
        generator: of the random numbers.

    Returns:
        (sum(groups),) int64, each index once.
    """
    starts = [0, *itertools.accumulate(groups)]
    streams: list[list[Tensor]] = [[] for _ in range(4)]
    for turn, group in enumerate(torch.randperm(len(groups), generator=generator).tolist()):
        items = torch.arange(starts[group], starts[group + 1])
        for window in items.split(64):
            mixed = window[torch.randperm(len(window), generator=generator)]
            streams[turn % 4].append(mixed)
    blocks = [torch.cat(stream).split(block) if stream else () for stream in streams]
    turns = itertools.zip_longest(*blocks)
    return torch.cat([items for turn in turns for items in turn if items is not None])
