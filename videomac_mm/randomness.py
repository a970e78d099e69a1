"""Random numbers that depend on a place in a run, not on what was drawn before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(purpose: str, *place: int) -> int:
    """Make a seed out of a place. Seeds of different places are unrelated.

    Args:
        purpose: what the numbers are for, in at most 8 ASCII letters; another purpose gives
            another seed.
        place: whole numbers of at least 0, always as many for one purpose.

    Returns:
        A number of 63 bits.
    """
    entropy = [int.from_bytes(purpose.encode('ascii'), 'little'), *place]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def seed_host(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers on the CPU."""
    random.seed(seed)
    # One more word: of the same two, Python and NumPy would draw the same numbers.
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32, 1])
    torch.default_generator.manual_seed(seed)


def seed_step(seed: int) -> None:
    """Seed all that a training step may draw from: the CPU's random numbers and the GPU's."""
    seed_host(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` on the CPU inside the block; afterwards go on as if nothing was drawn."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_host(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def get_rng_state() -> dict:
    """The state of all random numbers of this process, as tensors and plain numbers."""
    version, python, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return dict(
        python=(version, torch.tensor(python), gauss),
        numpy=(
            torch.from_numpy(numpy['state']['key'].astype(np.int64)),
            numpy['state']['pos'],
            numpy['has_gauss'],
            numpy['gauss'],
        ),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    )


def set_rng_state(state: dict) -> None:
    """Go on from a state of `get_rng_state`; of GPUs, as many as both processes have."""
    version, python, gauss = state['python']
    random.setstate((version, tuple(python.tolist()), gauss))
    key, *rest = state['numpy']
    np.random.set_state(('MT19937', key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, of_gpu in enumerate(state['cuda'][:num_gpus]):
        torch.cuda.set_rng_state(of_gpu.cpu(), device)
