"""Items depend on their place alone, and the sampler finds any place."""

import itertools
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from torch.utils.data import DataLoader

from videomac_mm.datasets import Place, PlacedItems, ResumableSampler
from videomac_mm.datasets.places import KeptItems, grouped_order
from videomac_mm.datasets.unlabelled_videos import UnlabelledVideoDataset
from videomac_mm.randomness import get_rng_state, seed_of, seeded, set_rng_state

pytestmark = pytest.mark.reliability


def draw(info: dict) -> dict:
    """A pipeline that draws from all random numbers."""
    draws = random.random(), np.random.rand(), torch.rand(1).item()
    return dict(index=info['index'], draws=draws)


class Numbers(PlacedItems, BaseDataset):
    def __init__(self, size: int, bad: tuple = (), pipeline: tuple = (draw,)) -> None:
        self.size = size
        self.bad = bad
        super().__init__(pipeline=pipeline)

    def load_data_list(self) -> list[dict]:
        return [dict(index=i) for i in range(self.size)]

    def prepare_data(self, idx: int) -> dict | None:
        return None if idx in self.bad else super().prepare_data(idx)


def global_draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()


# ------------------------------------------------------------------------------ items


def test_items__depend_on_their_place_and_on_nothing_else():
    dataset = Numbers(5)
    first = dataset[Place(3, seed=1, epoch=2)]
    global_draws()
    dataset[Place(4, seed=1, epoch=2)]
    assert dataset[Place(3, seed=1, epoch=2)] == first
    others = [Place(3, 1, 3), Place(3, 2, 2), Place(4, 1, 2)]
    assert len({item['draws'] for item in [first, *(dataset[p] for p in others)]}) == 4
    assert len(set(first['draws'])) == 3


def test_items__leave_the_random_numbers_of_the_run_alone():
    with seeded(5):
        wanted = global_draws()
    with seeded(5):
        Numbers(5)[Place(3, seed=1, epoch=2)]
        assert global_draws() == wanted


def test_items__plain_indices_draw_as_they_did():
    with seeded(5):
        wanted = global_draws()
    with seeded(5):
        assert Numbers(5)[3]['draws'] == wanted


def test_items__replacements_depend_on_the_place_too():
    """However many items were found unusable before."""
    place = Place(3, seed=0, epoch=0)
    wanted = Numbers(50, bad=(3,))[place]
    assert wanted['index'] != 3
    dataset = Numbers(50, bad=(3, 7, 8))
    for i in range(5):
        dataset[Place(7, 0, i)]
    assert dataset[place] == wanted
    with pytest.raises(RuntimeError, match='no usable item for index 3 in epoch 0'):
        Numbers(4, bad=(0, 1, 2, 3))[place]


@pytest.mark.parametrize('workers', [1, 3])
def test_items__do_not_depend_on_workers(workers):
    def items(**loader) -> list:
        dataset = Numbers(10, bad=(2,))
        sampler = ResumableSampler(dataset, seed=4)
        return [x for x in DataLoader(dataset, None, sampler=sampler, **loader)]

    assert items(num_workers=workers) == items()


def test_place__goes_through_wrappers():
    one, two = Numbers(5), Numbers(5)
    repeated = RepeatDataset(one, 3)
    draws = {repeated[Place(i, 0, 0)]['draws'] for i in (1, 6, 11)}
    assert len(draws) == 3  # each repetition draws for itself
    assert repeated[Place(6, 0, 0)] == repeated[Place(6, 0, 0)]
    joined = ConcatDataset([one, two])
    assert joined[Place(7, 0, 0)]['index'] == 2
    assert joined[Place(7, 0, 0)]['draws'] != joined[Place(2, 0, 0)]['draws']


def test_place__travels_to_workers():
    place = pickle.loads(pickle.dumps(Place(7, 1, 2, origin=17)))
    assert (place, place.seed, place.epoch, place.origin) == (7, 1, 2, 17)


def test_seeds__of_different_places_differ():
    seeds = {
        seed_of('item', seed, epoch, i) for seed in range(9) for epoch in range(9) for i in range(9)
    }
    assert len(seeds) == 9**3
    assert seed_of('item', 1, 0) != seed_of('mask', 1, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_rng_state__goes_on_where_it_was():
    state = pickle.loads(pickle.dumps(get_rng_state()))
    wanted = global_draws()
    set_rng_state(state)
    assert global_draws() == wanted


# ---------------------------------------------------------------------------- sampler


def sampler_of(size: int, batch_size: int, rank: int = 0, world: int = 1, **bound):
    sampler = ResumableSampler(range(size), seed=3)
    sampler.rank, sampler.world_size = rank, world
    sampler.bind(batch_size, **{'drop_last': False, 'endless': False, **bound})
    return sampler


def batches(sampler, batch_size: int, count: int | None = None) -> list[list[tuple]]:
    """(index, epoch) of the items of each batch."""
    found, batch = [], []
    for place in sampler:
        batch.append((int(place), place.epoch))
        if len(batch) == batch_size:
            found.append(batch)
            batch = []
        if len(found) == count:
            break
    return found + [batch] * bool(batch)


def test_sampler__an_epoch_has_each_item_once_in_another_order():
    sampler = sampler_of(50, 4)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append([int(place) for place in sampler])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1] != list(range(50))
    assert len(sampler) == 50


def test_sampler__without_shuffling_goes_by_index():
    assert list(ResumableSampler(range(5), shuffle=False)) == list(range(5))


@pytest.mark.parametrize('endless', [False, True])
@pytest.mark.parametrize('drop_last', [False, True])
def test_sampler__goes_on_at_any_place(endless, drop_last):
    bound = dict(endless=endless, drop_last=drop_last)
    whole = batches(sampler_of(23, 4, **bound), 4, 20)
    for done in range(len(whole)):
        sampler = sampler_of(23, 4, **bound)
        epoch, items = divmod(4 * done, 23) if endless else (0, 4 * done)
        sampler.start(3, epoch, items)
        assert batches(sampler, 4, 20 - done) == whole[done:]


@pytest.mark.parametrize('world', [2, 4])
@pytest.mark.parametrize('size', [16, 29, 31, 32, 5])
@pytest.mark.parametrize('endless, drop_last', [(True, False), (False, True), (False, False)])
def test_sampler__processes_share_the_batches_of_one(world, size, endless, drop_last):
    bound = dict(endless=endless, drop_last=drop_last)
    one = batches(sampler_of(size, 8, **bound), 8, 9)
    each = 8 // world
    many = [sampler_of(size, each, rank, world, **bound) for rank in range(world)]
    shares = [batches(sampler, each, 9) for sampler in many]
    assert len({len(share) for share in shares}) == 1
    if not endless:
        assert len({len(sampler) for sampler in many}) == 1
        assert len(many[0]) == sum(len(batch) for batch in shares[0])
    joined = [sum(parts, []) for parts in zip(*shares)]
    assert len(joined) == len(one)
    for got, wanted in zip(joined, one):
        # Where shares of the last batch are unequal, first items of the epoch fill them up.
        assert got[: len(wanted)] == wanted
        assert len(got) < len(wanted) + world
        assert got[len(wanted) :] == one[0][: len(got) - len(wanted)]


def test_sampler__a_batch_may_be_larger_than_the_data_set():
    (first,) = batches(sampler_of(3, 8, endless=True), 8, 1)
    assert [epoch for _, epoch in first] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert {index for index, _ in first[:3]} == {0, 1, 2}


def test_sampler__needs_a_batch_size_in_several_processes():
    sampler = ResumableSampler(range(4))
    sampler.world_size = 2
    with pytest.raises(RuntimeError, match='does not know the batch size in 2 processes'):
        next(iter(sampler))


def test_sampler__needs_items():
    with pytest.raises(ValueError, match='at least one item, got none'):
        ResumableSampler([])


# -------------------------------------------------------------------- unusable videos


def test_unusable__is_remembered_and_counted_once(tmp_path):
    for name in ('a.mp4', 'b.mp4', 'c.mp4'):
        (tmp_path / name).write_bytes(b'no video')
    pipeline = [dict(type='videomac_mm.OpenVideo')]
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=pipeline, max_bad_share=1)
    assert dataset.prepare_data(1) is None
    assert dataset.prepare_data(1) is None
    assert dataset.bad_items == [1]
    resumed = UnlabelledVideoDataset(str(tmp_path), pipeline=pipeline, max_bad_share=1)
    resumed.remember_bad([1, 99])
    assert resumed.bad_items == [1]


# ----------------------------------------------------------------- several a video


class Parts(Numbers):
    """Several items of each number; one reading gives all of them."""

    def __init__(self, size: int, parts: int) -> None:
        super().__init__(size)
        self.items_per_video = parts
        self.read = []

    def __len__(self) -> int:
        return self.size * self.items_per_video

    def read_video(self, index: int) -> list:
        self.read.append(index)
        return [(index, part, np.random.rand()) for part in range(self.items_per_video)]


def endless(dataset: Parts, batch_size: int, epoch: int = 0, first: int = 0):
    sampler = ResumableSampler(dataset)
    sampler.bind(batch_size, drop_last=True, endless=True)
    sampler.start(seed=3, epoch=epoch, first=first)
    return iter(sampler)


@pytest.mark.parametrize('size, parts, batch_size', [(100, 8, 4), (20, 8, 16), (7, 3, 4)])
def test_turns__every_item_comes_once_and_a_batch_has_other_videos(size, parts, batch_size):
    items = endless(Parts(size, parts), batch_size)
    batches = [list(itertools.islice(items, batch_size)) for _ in range(10 * size * parts // 4)]
    seen = Counter((place.epoch, int(place)) for batch in batches for place in batch)
    assert set(seen.values()) == {1}
    in_the_middle = [index for epoch, index in seen if epoch == 3]
    assert sorted(in_the_middle) == list(range(size * parts)), 'a whole epoch'
    distinct = [len({int(place) // parts for place in batch}) for batch in batches]
    # Two epochs may overlap within a batch, in which a video then comes twice.
    assert np.mean(distinct) > 0.85 * min(batch_size, size)
    begin = [sum(int(place) % parts == 0 for place in batch) for batch in batches[8 * parts :]]
    assert max(begin) <= -(-batch_size // parts) + 1, 'reading is spread evenly'


def test_turns__a_video_is_drawn_like_any_other():
    """Each comes as often, and its draws are those of its own place."""
    dataset = Parts(10, 4)
    items = [dataset[place] for place in itertools.islice(endless(dataset, 4), 4000)]
    counts = Counter(index for index, _, _ in items)
    assert min(counts.values()) >= 397 and max(counts.values()) <= 403
    assert len({draw for _, _, draw in items}) == 4000
    assert abs(np.mean([draw for _, _, draw in items]) - 0.5) < 0.02
    assert len(dataset.read) <= 1000 + 10


@pytest.mark.parametrize('first', [0, 1, 37, 79])
def test_turns__any_place_is_found_at_once(first):
    dataset = Parts(10, 8)
    run = list(itertools.islice(endless(dataset, 4), 500))
    wanted = [dataset[place] for place in run[80 + first :]]
    resumed = Parts(10, 8)
    got = [resumed[p] for p in itertools.islice(endless(resumed, 4, 1, first), 500 - 80 - first)]
    assert got == wanted


def test_turns__two_processes_take_what_one_takes(monkeypatch):
    whole = list(itertools.islice(endless(Parts(50, 4), 8), 400))
    shares = []
    for rank in range(2):
        monkeypatch.setattr(
            'videomac_mm.datasets.places.get_dist_info', lambda rank=rank: (rank, 2)
        )
        shares.append(list(itertools.islice(endless(Parts(50, 4), 4), 200)))
    joined = [p for i in range(0, 200, 4) for share in shares for p in share[i : i + 4]]
    assert [(int(p), p.epoch) for p in joined] == [(int(p), p.epoch) for p in whole]


def test_turns__by_index_where_nothing_is_shuffled():
    sampler = ResumableSampler(Parts(3, 4), shuffle=False)
    assert [int(place) for place in sampler] == list(range(12))


def test_kept_items__are_bounded_and_begin_empty_in_copies():
    kept = KeptItems(max_videos=2)
    for key in 'abc':
        kept.keep((key,), 0, [0, 1, 2])
    assert kept.take(('a',), 1) is None and kept.take(('c',), 1) == 1
    assert kept.take(('b',), 2) == 2 and kept.take(('b',), 1) is None, 'earlier ones are gone'
    copied = pickle.loads(pickle.dumps(kept))
    assert copied.max_videos == 2 and copied.take(('c',), 2) is None


# --------------------------------------------------------------------------- groups


def test_groups__stay_nearly_together():
    sizes = [100, 37, 0, 250, 64, 9, 300]
    starts = np.cumsum([0, *sizes])

    def order(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return grouped_order(sizes, 16, generator).numpy()

    one, other = order(0), order(1)
    assert sorted(one) == list(range(sum(sizes))) and (one != other).any()
    assert (order(0) == one).all()
    group = np.searchsorted(starts, one, side='right') - 1
    for number, size in enumerate(sizes):
        indices = one[group == number]
        # read from start to end, but for windows of 64
        assert np.abs(indices - starts[number] - np.arange(size)).max(initial=0) < 64
    for number in range(0, len(one), 16):
        assert len(set(group[number : number + 50])) <= 6, 'four at a time, two that change'


def test_groups__are_kept_by_the_sampler():
    dataset = Numbers(300)
    dataset.group_sizes = [100, 100, 100]
    sampler = ResumableSampler(dataset)
    sampler.bind(batch_size=10, drop_last=True, endless=False)
    places = [int(place) for place in sampler]
    assert sorted(places) == list(range(300))
    for start in range(0, 300, 10):
        assert len({place // 100 for place in places[start : start + 10]}) == 1
