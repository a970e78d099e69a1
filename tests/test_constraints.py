"""``constraints.txt`` pins what an installation brings in, not only what ``setup.py`` names."""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires

import pytest
import setuptools

requirements = pytest.importorskip('packaging.requirements')


def plain(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


@pytest.fixture
def pins(root) -> dict:
    """The line of each package."""
    lines = (line.split('#')[0].strip() for line in (root / 'constraints.txt').open())
    found = [requirements.Requirement(line) for line in lines if line]
    return {plain(pin.name): pin for pin in found}


@pytest.fixture
def wanted(root, monkeypatch) -> list[str]:
    """What ``setup.py`` asks for, with all extras."""
    seen = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: seen.update(kwargs))
    exec((root / 'setup.py').read_text(), dict(__file__=str(root / 'setup.py')))
    return [*seen['install_requires'], *seen['extras_require']['all']]


@pytest.mark.skipif(sys.version_info < (3, 11), reason='pins of Python 3.11 and later')
def test_constraints__pin_every_package_that_is_brought_in(pins, wanted):
    waiting = [requirements.Requirement(line) for line in wanted]
    seen, unpinned = set(), []
    while waiting:
        wish = waiting.pop()
        extras = wish.extras or {''}
        if wish.marker and not wish.marker.evaluate(dict(extra='')):
            continue
        name = plain(wish.name)
        if name == 'pip' or (name, *extras) in seen:  # every environment has its own pip
            continue
        seen.add((name, *extras))
        pin = pins.get(name)
        if pin is None or not re.fullmatch(r'==[^*]+', str(pin.specifier)):
            unpinned.append(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # of an extra that is not installed here
            continue
        for line in lines:
            inner = requirements.Requirement(line)
            if not inner.marker or any(inner.marker.evaluate(dict(extra=e)) for e in extras):
                inner.marker = None
                waiting.append(inner)
    assert not unpinned
    assert len(seen) > 80


@pytest.mark.parametrize(
    'machine, has_decord',
    [('x86_64', True), ('AMD64', True), ('aarch64', False), ('arm64', False)],
)
def test_setup__asks_for_decord_where_there_are_wheels(wanted, machine, has_decord):
    """And for mmaction2, which asks for it; what else mmaction2 wants is asked for everywhere."""
    environment = dict(extra='', platform_machine=machine)
    names = {
        plain(wish.name)
        for wish in map(requirements.Requirement, wanted)
        if not wish.marker or wish.marker.evaluate(environment)
    }
    assert ('decord' in names) == ('mmaction2' in names) == has_decord
    for line in requires('mmaction2'):
        wish = requirements.Requirement(line)
        if not wish.marker and plain(wish.name) not in ('decord', 'opencv-contrib-python'):
            assert plain(wish.name) in names, line
