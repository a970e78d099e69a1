"""How repairs reach modules: after an import, instead of one, and where one fails."""

import sys

from videomac_mm import compat
from videomac_mm.compat import _repair


def test_import__loads_no_heavy_package(run_python):
    run_python(
        'import sys, videomac_mm\n'
        "heavy = {'mmpretrain', 'mmaction', 'mmcv', 'decord', 'mmengine.runner'}\n"
        'assert not heavy & set(sys.modules), heavy & set(sys.modules)'
    )


def test_stand_in__yields_to_a_real_module(tmp_path, monkeypatch):
    (tmp_path / 'videomac_mm_probe.py').write_text('real = True')
    monkeypatch.syspath_prepend(tmp_path)
    stand_ins = _repair._StandIns()
    for name in ('videomac_mm_probe', 'videomac_mm_absent'):
        stand_ins.offer(name, lambda module: setattr(module, 'real', False))
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path, stand_ins])
    import videomac_mm_absent
    import videomac_mm_probe

    assert videomac_mm_probe.real
    assert not videomac_mm_absent.real


def test_apply__twice_changes_nothing():
    from mmaction.models.heads import TSNHead

    before = list(sys.meta_path)
    compat.apply()
    assert sys.meta_path == before
    head = TSNHead(num_classes=3, in_channels=4)
    assert len(head._forward_hooks) == 1


def test_failed_import__is_rescued_once_code_runs_again(tmp_path, monkeypatch):
    (tmp_path / 'videomac_mm_failing.py').write_text(
        'tries = tries + 1 if "tries" in vars() else 1\n1 / (tries - 1)'
    )
    monkeypatch.syspath_prepend(tmp_path)
    imports = _repair._Imports()
    imports.on_error('videomac_mm_failing', lambda module, execute, error: execute(module))
    monkeypatch.setattr(sys, 'meta_path', [imports, *sys.meta_path])
    import videomac_mm_failing

    assert videomac_mm_failing.tries == 2
