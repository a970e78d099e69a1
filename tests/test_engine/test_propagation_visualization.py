from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image

import videomac_mm  # noqa: F401  repairs OpenMMLab before anything else imports it
from videomac_mm.datasets import SyntheticVideo, open_video
from videomac_mm.engine import PropagationVisualizationHook
from videomac_mm.visualization import PALETTE, VideoWriter, draw_keypoints, draw_mask

TOY = Path(__file__).parent.parent / 'toy' / 'propagation_config.py'
HOOK = 'default_hooks.visualization'
TYPE = 'videomac_mm.PropagationVisualizationHook'
NAMES = ['synthetic_0000', 'synthetic_0001']


def run(tmp_path, options: dict) -> Runner:
    """Test the toy config with options as the command line gives them."""
    cfg = Config.fromfile(TOY)
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), experiment_name=tmp_path.name, **options))
    runner = Runner.from_cfg(cfg)
    runner.test()
    return runner


@pytest.fixture
def written(monkeypatch) -> list[np.ndarray]:
    """What is written into videos, before the codec."""
    frames, write = [], VideoWriter.write

    def record(writer, frame):
        frames.append(frame)
        write(writer, frame)

    monkeypatch.setattr(VideoWriter, 'write', record)
    return frames


def test_hook__writes_a_video_and_a_sheet_for_each_video(tmp_path):
    runner = run(tmp_path, {f'{HOOK}.type': TYPE, f'{HOOK}.fps': 10, f'{HOOK}.sheet_frames': 3})
    folder = Path(runner.log_dir) / 'propagation'
    assert sorted(path.name for path in folder.iterdir()) == [
        f'{name}.{suffix}' for name in NAMES for suffix in ('jpg', 'mp4')
    ]
    for name in NAMES:
        reader = open_video(folder / f'{name}.mp4')
        assert (len(reader), reader.size, reader.fps) == (4, (36, 52), 10)
        assert cv2.imread(str(folder / f'{name}.jpg')).shape == (220, 960, 3)


def test_hook__draws_predictions_on_the_frames_of_the_batch(tmp_path, written):
    options = {
        f'{HOOK}.type': TYPE,
        f'{HOOK}.out_dir': str(tmp_path / 'drawn'),
        f'{HOOK}.alpha': 1.0,
        'test_evaluator.outfile_prefix': str(tmp_path / 'png'),
        'test_dataloader.dataset.pipeline': [dict(type='PackFrame')],
    }
    run(tmp_path, options)
    assert sorted((tmp_path / 'drawn').glob('*.mp4'))
    frames = iter(written)
    for seed, name in enumerate(NAMES):
        video = SyntheticVideo(seed, num_frames=4, size=(35, 51))
        for t in range(4):
            pred = np.asarray(Image.open(tmp_path / 'png' / name / f'{t:05d}.png'))
            wanted = np.where(pred[..., None] > 0, PALETTE[pred], video.frame(t))
            np.testing.assert_array_equal(next(frames), wanted)


@pytest.mark.parametrize('form', ['masks', 'keypoints'])
def test_hook__puts_ground_truth_on_the_right(tmp_path, written, form):
    options = {
        f'{HOOK}.type': TYPE,
        f'{HOOK}.show_gt': True,
        'test_dataloader.dataset.form': form,
        'test_dataloader.dataset.pipeline': [dict(type='PackFrame')],
    }
    if form == 'keypoints':
        options |= {'model.codec.type': 'KeypointCodec', 'test_evaluator.type': 'PCKMetric'}
    run(tmp_path, options)
    assert [frame.shape for frame in written] == [(35, 102, 3)] * 8
    for number, frame in enumerate(written):
        seed, t = divmod(number, 4)
        video = SyntheticVideo(seed, num_frames=4, size=(35, 51))
        if form == 'masks':
            wanted = draw_mask(video.frame(t), video.mask(t))
        else:
            wanted = draw_keypoints(video.frame(t), video.keypoints(t)[0].reshape(-1, 2).T)
        np.testing.assert_array_equal(frame[:, 51:], wanted)
        # A first mask is given; first points come from the grid.
        assert (frame[:, :51] == wanted).all() == (form == 'masks' and t == 0)


def test_hook__is_off_unless_asked_for(tmp_path):
    run(tmp_path, {})
    assert not [*tmp_path.rglob('*.mp4'), *tmp_path.rglob('*.jpg')]


def test_hook__frames_without_ground_truth_stay_bare(tmp_path):
    inputs = torch.full((3, 8, 12), 99.6)
    sample = BaseDataElement(
        metainfo=dict(video='a/b', frame_id=0, num_frames=1, ori_shape=(16, 24)),
        pred_label=np.ones((8, 12), np.uint8),
    )
    hook = PropagationVisualizationHook(str(tmp_path), show_gt=True)
    picture = hook._draw(inputs, sample)
    assert picture.shape == (16, 48, 3)
    assert (picture[:, 24:] == 100).all() and (picture[:, :24] != 100).all()
    hook.after_test_iter(SimpleNamespace(), 0, dict(inputs=[inputs]), [sample])
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == ['b.jpg', 'b.mp4']


def test_hook__says_what_is_wrong():
    with pytest.raises(ValueError, match=r'alpha must lie in \[0, 1\], got 2'):
        PropagationVisualizationHook(alpha=2)
    with pytest.raises(ValueError, match='sheet_frames at least 1, got 24 and 0'):
        PropagationVisualizationHook(fps=24, sheet_frames=0)
    sample = BaseDataElement(metainfo=dict(ori_shape=(8, 8)), gt_label=np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"the model predicts only \['gt_label'\]"):
        PropagationVisualizationHook()._draw(torch.zeros(3, 8, 8), sample)
