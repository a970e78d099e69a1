import doctest
from pathlib import Path

import videomac_mm.sparse


def test_readme__shows_what_its_lines_print():
    path = Path(videomac_mm.sparse.__file__).with_name('README.md')
    result = doctest.testfile(str(path), module_relative=False)
    assert result.attempted > 10 and result.failed == 0
