"""A small part of `tests.reliability.fuzz_videos`: damaged and odd files end as they should."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.films import encode
from tests.reliability.fuzz_videos import (
    Tally,
    check_data_set,
    growth,
    open_many,
    special_files,
    try_copies,
    try_specials,
)

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc'),
]
BACKENDS = ['pyav', *(['decord'] if find_spec('decord') else [])]


@pytest.fixture
def sources(tmp_path) -> list[Path]:
    """Small films, two of them .ts of different sizes."""
    folder = tmp_path / 'films'
    folder.mkdir()
    names = {'a.mp4': (48, 64), 'a.ts': (48, 64), 'b.ts': (96, 80)}
    return [Path(encode(folder / name, 16, size=size)) for name, size in names.items()]


@pytest.fixture
def tally(tmp_path) -> Tally:
    (tmp_path / 'kept').mkdir()
    return Tally(tmp_path / 'kept')


def test_fuzz__damaged_copies_read_or_are_unusable(tmp_path, tally, sources):
    try_copies(tally, tmp_path, sources, BACKENDS, copies=60, seed=0)
    assert tally.failures == []
    assert sum(sum(count.values()) for count in tally.counts.values()) == 60 * len(BACKENDS)


@pytest.mark.parametrize('backend', BACKENDS)
def test_fuzz__special_files_end_as_expected(tmp_path, tally, backend):
    assert try_specials(tally, tmp_path / 'special', backend) == []
    assert tally.failures == []


def test_fuzz__many_opens_leave_nothing_open(tmp_path, tally, sources):
    cut = tmp_path / 'cut.mp4'
    cut.write_bytes(sources[0].read_bytes()[:2000])
    paths = [str(path) for path in (*sources, cut)]
    usages = open_many(tally, paths, BACKENDS, opens=200, seed=0, rows=10)
    assert len(usages) == 10 and growth(usages) == []
    assert tally.failures == []


def test_fuzz__data_set_accounts_for_what_it_skips(tmp_path):
    for special in special_files(tmp_path / 'data'):
        if special.meddle is not None:
            Path(special.path).unlink()
    assert check_data_set(tmp_path / 'data', 'pyav') == []
