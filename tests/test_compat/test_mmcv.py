"""Each repair of mmcv: the problem is gone, and what is sound is untouched."""

from importlib.machinery import PathFinder

import numpy as np
import pytest

from videomac_mm.compat.mmcv import _HueFactor


@pytest.mark.parametrize('toolbox', ['mmseg', 'mmdet', 'mmpose'])
def test_mmcv_ops__stand_in_only_for(toolbox, tmp_path, run_python):
    import mmcv

    if PathFinder.find_spec('mmcv._ext', mmcv.__path__):
        pytest.skip('compiled mmcv')
    (tmp_path / f'{toolbox}.py').touch()
    run_python(
        f'import sys\n'
        f'sys.path.insert(0, {str(tmp_path)!r})\n'
        f'import pytest, torch, videomac_mm\n'
        # Heard before the toolbox came.
        f'from mmcv.cnn.bricks import transformer\n'
        f'with pytest.raises(ModuleNotFoundError):\n'
        f'    import mmcv.ops\n'
        f'import {toolbox}\n'
        f'from mmcv.ops import MultiScaleDeformableAttention, nms\n'
        f'with pytest.raises(ImportError, match="needs the compiled mmcv"):\n'
        f'    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n'
        f'if {toolbox!r} == "mmdet":\n'
        f'    from mmcv.cnn.bricks.transformer import MultiScaleDeformableAttention as named\n'
        f'    assert named is MultiScaleDeformableAttention\n'
    )


def test_mmcv_hue__turns_both_ways():
    import mmcv

    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 2] = 255
    for backend in ('cv2', 'pillow'):
        towards_green = mmcv.adjust_hue(red, 1 / 3, backend=backend)
        towards_blue = mmcv.adjust_hue(red, -1 / 3, backend=backend)
        np.testing.assert_allclose(towards_green[0, 0], [0, 255, 0], atol=6)
        np.testing.assert_allclose(towards_blue[0, 0], [255, 0, 0], atol=6)


def test_hue_factor__is_a_shift_modulo_256():
    for factor in np.linspace(-0.5, 0.5, 101):
        shift = _HueFactor(factor) * 255
        assert shift == int(factor * 255) % 256
        assert 0 <= shift < 256
