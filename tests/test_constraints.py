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
