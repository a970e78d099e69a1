"""What is scored, saved, refused, and collected from several processes."""

import csv
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement
from PIL import Image

from videomac_mm.evaluation import DAVISMetric, PCKMetric, VIPMetric
from videomac_mm.registry import METRICS

SIZE = (24, 32)


def label(*columns: int) -> np.ndarray:
    """Object n covers 8 x 8 pixels from column n on."""
    ids = np.zeros(SIZE, np.uint8)
    for i, column in enumerate(columns, start=1):
        ids[8 * i - 8 : 8 * i, column : column + 8] = i
    return ids


def frames(video: str, **arrays: list) -> list[dict]:
    """Samples of a video from lists over time; None = not there."""
    num_frames = len(next(iter(arrays.values())))
    samples = []
    for t in range(num_frames):
        sample = dict(video=video, frame_id=t, num_frames=num_frames, grid=(24, 32), ori_shape=SIZE)
        sample['img_path'] = f'/data/{video}/{2 * t:05d}.jpg'
        sample.update({key: values[t] for key, values in arrays.items() if values[t] is not None})
        samples.append(sample)
    return samples


def masks(video: str, preds: list, gts: list) -> list[dict]:
    return frames(video, pred_label=preds, gt_label=gts)


def joints(video: str, preds: list, gts: list) -> list[dict]:
    return frames(video, pred_keypoints=preds, gt_keypoints=gts)


MORE = masks('more', [label(4)] * 3, [label(4)] * 3)


def score(metric, *videos: list[dict]) -> dict[str, float]:
    """One sample at a time, as a test loop does."""
    evaluator = Evaluator(metric)
    for sample in sum(videos, []):
        evaluator.process([BaseDataElement(metainfo=sample)])
    return evaluator.evaluate(size=sum(map(len, videos)))


def rows(file: Path) -> list[dict]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


# --------------------------------------------------------------------------- DAVIS


def test_davis__perfect():
    metric = METRICS.build(dict(type='videomac_mm.DAVISMetric'))
    assert isinstance(metric, DAVISMetric)
    labels = [label(t, 2 * t) for t in range(6)]
    assert score(metric, masks('a', labels, labels)) == {
        'DAVIS/J&F-Mean': 1,
        'DAVIS/J-Mean': 1,
        'DAVIS/J-Recall': 1,
        'DAVIS/J-Decay': 0,
        'DAVIS/F-Mean': 1,
        'DAVIS/F-Recall': 1,
        'DAVIS/F-Decay': 0,
    }


def test_davis__ignores_first_and_last_frame():
    gts = [label(4)] * 4
    bad = np.full((3, 3), 9, np.uint8)
    assert score(DAVISMetric(), masks('a', [bad, *gts[1:3], bad], gts))['DAVIS/J&F-Mean'] == 1


def test_davis__ignores_the_last_annotated_frame():
    """Of a video that is not annotated to its end."""
    good, bad = label(4), label(20)
    metric = DAVISMetric()
    samples = masks('a', [good, good, good, bad, bad], [good, None, good, good, None])
    assert score(metric, samples)['DAVIS/J-Mean'] == 1


def test_davis__mean_over_objects_not_videos(tmp_path):
    gt, half = label(4, 4, 4), label(4, 4, 20)
    result_dir = str(tmp_path)
    metrics = score(
        DAVISMetric(result_dir=result_dir),
        masks('b', [half] * 3, [gt] * 3),
        masks('a', [label(4)] * 3, [label(4)] * 3),
    )
    assert metrics['DAVIS/J-Mean'] == 3 / 4
    assert metrics['DAVIS/J-Recall'] == 3 / 4

    wanted = {'a_1': 1, 'b_1': 1, 'b_2': 1, 'b_3': 0}
    table = rows(tmp_path / 'per-sequence_results-val.csv')
    assert [tuple(row) for row in table] == [('Sequence', 'J-Mean', 'F-Mean')] * 4
    assert [row['Sequence'] for row in table] == list(wanted)  # by name
    assert [row['J-Mean'] for row in table] == [f'{j:.3f}' for j in wanted.values()]
    assert rows(tmp_path / 'global_results-val.csv')[0]['J-Mean'] == '0.750'
    stored = json.loads((tmp_path / 'results.json').read_text())
    assert {row['Sequence']: row['J-Mean'] for row in stored['per-object']} == wanted
    assert stored['global_results-val'][0]['J&F-Mean'] == metrics['DAVIS/J&F-Mean']


def test_davis__void_is_background():
    gt = label(4)
    void = np.where(gt == 0, 255, gt).astype(np.uint8)
    assert score(DAVISMetric(), masks('a', [gt] * 3, [void] * 3))['DAVIS/J-Mean'] == 1


def test_davis__ids_without_pixels_are_objects():
    gt = label(4, 4, 4)
    gt[gt == 2] = 0
    pred = np.where(gt == 3, 0, gt)
    assert score(DAVISMetric(), masks('a', [pred] * 3, [gt] * 3))['DAVIS/J-Mean'] == 2 / 3


def test_davis__long_videos_lose_their_decay(capsys):
    labels = [label(4)] * 302
    metrics = score(DAVISMetric(), masks('long', labels, labels))
    assert metrics['DAVIS/J&F-Mean'] == 1
    assert math.isnan(metrics['DAVIS/J-Decay'])
    assert '256 scored frames' in capsys.readouterr().out


def test_davis__saves_indexed_pictures(tmp_path):
    gt = label(0, 4, 8)
    preds = [gt, label(1, 5, 9), label(2, 6, 10)]
    score(DAVISMetric(outfile_prefix=str(tmp_path)), masks('a', preds, [gt, gt, None]), MORE)
    for t, pred in enumerate(preds):
        picture = Image.open(tmp_path / 'a' / f'{2 * t:05d}.png')
        assert picture.mode == 'P'
        np.testing.assert_array_equal(np.array(picture), pred)
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    wanted = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0)}
    assert {i: tuple(palette[i].tolist()) for i in wanted} == wanted


def test_format_only__saves_without_annotation(tmp_path):
    metric = DAVISMetric(outfile_prefix=str(tmp_path), format_only=True)
    assert score(metric, masks('a', [label(4)] * 3, [label(4), None, None])) == {}
    assert len(list((tmp_path / 'a').iterdir())) == 3


def test_unscored_video__is_left_out_and_named(capsys):
    unscored = masks('empty', [label(4)] * 3, [label(4), None, label(20)])
    assert score(DAVISMetric(), unscored, MORE)['DAVIS/J-Mean'] == 1
    assert '1 of 2 videos, which have no scored frame: empty' in capsys.readouterr().out


GOOD = label(4, 4)


@pytest.mark.parametrize(
    'samples, message',
    [
        (masks('v', [GOOD, GOOD[:-1], GOOD], [GOOD] * 3), r'\(24, 32\), got \(23, 32\)'),
        (masks('v', [GOOD, GOOD + 1, GOOD], [GOOD] * 3), 'must not exceed 2.* got 3'),
        (masks('v', [GOOD, None, GOOD], [GOOD] * 3), "'pred_label' in frame 1 of 'v'"),
        (masks('v', [GOOD] * 3, [None, GOOD, GOOD]), "frame 1 of 'v' has a gt_label"),
        (masks('v', [GOOD] * 3, [0 * GOOD, GOOD, GOOD]), 'empty gt_label'),
        (masks('v', [GOOD] * 4, [GOOD] * 4)[::2], "frame 1 of 'v' was awaited, got frame 2"),
        (masks('v', [GOOD] * 3, [GOOD] * 3)[1:], "frame 0 of 'v' was awaited, got frame 1"),
        (masks('v', [GOOD] * 3, [GOOD] * 3)[:2] + MORE, "frame 2 of 'v' was awaited.*'more'"),
        (masks('v', [GOOD] * 3, [GOOD] * 3)[:2], "'v' is incomplete: frame 2"),
        (masks('v', [GOOD] * 2, [GOOD] * 2), 'nothing to evaluate: DAVISMetric got 1 videos'),
        ([], 'nothing to evaluate: DAVISMetric got 0 videos'),
    ],
)
def test_davis__refuses(samples, message):
    with pytest.raises(ValueError, match=message):
        score(DAVISMetric(), samples)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(format_only=True), 'needs outfile_prefix'),
        (dict(outfile_prefix='same', result_dir='same'), "must differ.*'same'"),
    ],
)
def test_metric__refuses_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VIPMetric(**kwargs)


# ----------------------------------------------------------------------------- VIP


def test_vip__one_matrix_over_all_frames_and_videos(tmp_path):
    """The mean of the videos would be another number."""
    one, two = np.ones((2, 4, 4), np.uint8) * [[[1]], [[2]]]
    videos = masks('a', [one, two, one], [one] * 3), masks('b', [two], [two])
    metric = VIPMetric(result_dir=str(tmp_path))
    metric.dataset_meta = dict(classes=[f'part {i}' for i in range(20)])
    metrics = score(metric, *videos)
    assert metrics == {
        'VIP/mIoU': pytest.approx((2 / 3 + 1 / 2) / 2),
        'VIP/mAcc': pytest.approx((2 / 3 + 1) / 2),
        'VIP/aAcc': 3 / 4,
    }
    table = rows(tmp_path / 'per-class.csv')
    assert table[1] == {'class': 'part 1', 'IoU': '0.667', 'Acc': '0.667'}
    assert table[3] == {'class': 'part 3', 'IoU': '', 'Acc': ''}
    assert [row['mIoU'] for row in rows(tmp_path / 'per-video.csv')] == ['0.333', '1.000']
    stored = json.loads((tmp_path / 'results.json').read_text())
    assert stored['per-class'][3]['IoU'] is None
    assert stored['global'][0]['mIoU'] == metrics['VIP/mIoU']


def test_vip__first_frame_counts_and_others_may_have_no_label():
    one, two = np.ones((2, 4, 4), np.uint8) * [[[1]], [[2]]]
    samples = masks('a', [two, two, one], [one, None, one])
    assert score(VIPMetric(), samples)['VIP/aAcc'] == 1 / 2


def test_vip__brings_predictions_to_size():
    gt = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 6, 0), 9, 1)
    pred = np.arange(4, dtype=np.uint8).reshape(2, 2)
    assert score(VIPMetric(), masks('a', [pred], [gt]))['VIP/mIoU'] == 1


def test_vip__refuses_ids():
    gt = np.ones((4, 4), np.uint8)
    with pytest.raises(ValueError, match="frame 0 of 'a': .* below 20, got 255"):
        score(VIPMetric(), masks('a', [255 * gt], [gt]))


# ----------------------------------------------------------------------------- PCK

# A box of 6 x 8 pixels and cells of one pixel: the unit is 6.
POSE = np.array([[4.0, 10.0, 7.0], [4.0, 12.0, 8.0]])


def pose(*shifts: float | None) -> np.ndarray:
    """A prediction: each joint shifted to the right, or lost."""
    pred = POSE.astype(np.float32)
    for joint, shift in enumerate(shifts):
        pred[:, joint] = [-1, -1] if shift is None else pred[:, joint] + [shift, 0]
    return pred


def test_pck__mean_over_joints_without_first_frame(tmp_path):
    # Relative distances: 0 and lost, 1/6 (twice), 1/3 and 1/2.
    preds = [pose(9, 9, 9), pose(0, 1, 2), pose(0, 1, 3)]
    metric = PCKMetric(outfile_prefix=str(tmp_path / 'out'), result_dir=str(tmp_path / 'scores'))
    metrics = score(metric, joints('jump/a', [*preds, preds[0]], [POSE] * 3 + [None]))
    assert metrics == {
        'JHMDB/PCK@0.1': pytest.approx(100 / 3),
        'JHMDB/PCK@0.2': pytest.approx(200 / 3),
        'JHMDB/PCK@0.3': pytest.approx(200 / 3),
        'JHMDB/PCK@0.4': pytest.approx(250 / 3),
        'JHMDB/PCK@0.5': pytest.approx(100),
    }
    table = rows(tmp_path / 'scores' / 'per-joint.csv')
    assert [row['PCK@0.4'] for row in table] == ['100.000', '100.000', '50.000']
    saved = np.load(tmp_path / 'out' / 'jump' / 'a.dat', allow_pickle=True)
    assert saved.dtype == np.float32
    np.testing.assert_array_equal(saved, np.stack([*preds, preds[0]], -1))


def test_pck__joint_that_is_always_lost_is_left_out_and_named(capsys):
    samples = joints('a', [pose(0, 0, None)] * 3, [POSE] * 3)
    assert score(PCKMetric(), samples)['JHMDB/PCK@0.1'] == 100
    assert 'joints that no scored frame has: 2' in capsys.readouterr().out


def test_pck__refuses():
    with pytest.raises(ValueError, match=r'\(2, 3\), got \(2, 2\)'):
        score(PCKMetric(), joints('a', [pose()[:, :2]] * 3, [POSE] * 3))
    with pytest.raises(ValueError, match='nothing to evaluate'):
        score(PCKMetric(), joints('a', [pose()], [POSE]))


# ------------------------------------------------------------ memory and processes


@pytest.mark.parametrize(
    'metric, samples',
    [
        (DAVISMetric(), masks('a', [label(4)] * 40, [label(4)] * 40)),
        (VIPMetric(), masks('a', [label(4)] * 40, [label(4)] * 40)),
        (PCKMetric(), joints('a', [pose()] * 40, [POSE] * 40)),
    ],
)
def test_metric__keeps_numbers_only(metric, samples):
    metric.process(None, samples[:-1])
    size = len(pickle.dumps(vars(metric)))
    assert size < 5000 < 40 * label(4).nbytes


VIDEOS = {name: masks(name, [label(3 + i)] * 4, [label(3)] * 4) for i, name in enumerate('abcde')}
SHARES = 'dabc', 'bad'  # of unequal length; a, b and d are in both


def share_of_a_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    metric = DAVISMetric(result_dir=f'{folder}/scores')
    metrics = score(metric, *(VIDEOS[name] for name in SHARES[rank]))
    Path(folder, f'{rank}.json').write_text(json.dumps(metrics))

    empty = [VIDEOS['e'], []][rank]
    assert score(DAVISMetric(), empty) == score_alone('e')

    with pytest.raises(ValueError, match="'e' is incomplete"):  # in both processes
        score(DAVISMetric(), [VIDEOS['a'], VIDEOS['e'][:2]][rank])
    torch.distributed.destroy_process_group()


def score_alone(*names: str) -> dict[str, float]:
    metric = DAVISMetric()
    for name in names:
        metric.process(None, VIDEOS[name])
    metrics = metric.compute_metrics(metric.results)
    return {f'DAVIS/{name}': value for name, value in metrics.items()}


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason='torch without gloo')
def test_two_processes__every_video_counts_once(tmp_path):
    torch.multiprocessing.spawn(share_of_a_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == score_alone(*'abcd')
    names = [row['Sequence'] for row in rows(tmp_path / 'scores' / 'per-object.csv')]
    assert names == ['a_1', 'b_1', 'c_1', 'd_1']
