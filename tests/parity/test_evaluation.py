"""The numbers of the official evaluators, from the same predictions."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from mmengine.evaluator import Evaluator
from PIL import Image

from videomac_mm.evaluation import DAVISMetric, PCKMetric, VIPMetric
from videomac_mm.evaluation import functional as F

FOLDER = (
    Path(os.environ.get('VIDEOMAC_MM_FIXTURES', Path(__file__).parents[3] / 'shared' / 'fixtures'))
    / 'label_propagation'
)
GLOBAL = {'J&F': 'J&F-Mean'}  # where expected.json has another name


def files(folder: str, pattern: str = '*.npz') -> list[Path]:
    return sorted((FOLDER / folder).glob(pattern))


SEQUENCES = [path for path in files('davis_eval') if not path.stem.startswith('unit_')]

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f'no official outputs in {FOLDER}; set VIDEOMAC_MM_FIXTURES'
)


def file_name(path: Path) -> str:
    return path.stem


def close(got, want) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def play(metric, video: str, **arrays) -> None:
    """Send the frames of a video; ``arrays`` hold them along their first axis."""
    num_frames = len(next(iter(arrays.values())))
    for t in range(num_frames):
        frame = dict(video=video, frame_id=t, num_frames=num_frames, img_path=f'{t:05d}.jpg')
        frame.update({key: values[t] for key, values in arrays.items() if values[t] is not None})
        metric.process(None, [frame])


# --------------------------------------------------------------------------- DAVIS


@pytest.mark.parametrize('file', files('davis_eval', 'unit_metrics*.npz'), ids=file_name)
def test_davis_masks(file):
    data = np.load(file)
    pred, gt, void = data['p'], data['g'], data['v']
    known = pred & ~void, gt & ~void
    close([F.region_similarity(*pair) for pair in zip(pred, gt)], data['J'])
    close([F.contour_accuracy(*pair) for pair in zip(pred, gt)], data['F'])
    close([F.contour_accuracy(*pair, tolerance=2) for pair in zip(pred, gt)], data['F_th2'])
    close([F.region_similarity(*pair) for pair in zip(*known)], data['Jv'])
    close([F.contour_accuracy(*pair) for pair in zip(*known)], data['Fv'])
    for blob, boundary in zip(data['blob'], data['bmap']):
        np.testing.assert_array_equal(F.mask_boundary(blob), boundary)


@pytest.mark.parametrize('file', files('davis_eval', 'unit_statistics*.npz'), ids=file_name)
def test_davis_statistics(file):
    data = np.load(file)
    names = [name for name in data.files if name.startswith('x')]
    assert names
    for name in names:
        close(F.sequence_statistics(data[name]), data[f's{name[1:]}'])


@pytest.mark.parametrize('file', SEQUENCES, ids=file_name)
def test_davis_sequence(file, tmp_path):
    data = np.load(file)
    metric = DAVISMetric(result_dir=str(tmp_path))
    play(metric, file.stem, gt_label=data['gt'], pred_label=data['pred'])
    j, f = metric.results[0]['scores'].transpose(1, 2, 0)
    close(j, data['J'])
    close(f, data['F'])

    metric.evaluate(size=0)
    rows = json.loads((tmp_path / 'results.json').read_text())['per-object']
    close([[row[name] for name in data['stat_names']] for row in rows], data['stats'])


@pytest.mark.parametrize('file', files('davis_eval', 'expected*.json'), ids=file_name)
def test_davis_data_set(file, tmp_path):
    """From the official values of each object: the frames of some sequences are not kept."""
    expected = json.loads(file.read_text())

    class FromObjects(DAVISMetric):
        def _objects(self, results):
            return [
                dict(Sequence=name, **dict(zip(self.statistics, values)))
                for name, values in expected['per_object'].items()
            ]

    metric = FromObjects(result_dir=str(tmp_path))
    metric.results = [dict(video='any', scores=np.zeros((1, 2, 1)))]
    got = metric.evaluate(size=0)
    assert len(got) == len(expected['global_'])
    for name, value in expected['global_'].items():
        close(got[f'DAVIS/{GLOBAL.get(name, name)}'], value)
    assert (tmp_path / 'global_results-val.csv').read_text() == expected['csv_global']
    assert (tmp_path / 'per-sequence_results-val.csv').read_text() == expected['csv_per_seq']


# ----------------------------------------------------------------------------- VIP


@pytest.mark.parametrize('file', files('vip'), ids=file_name)
def test_vip(file, tmp_path):
    data = np.load(file)
    videos = [name.removesuffix('_gt') for name in data.files if name.endswith('_gt')]
    metric = VIPMetric(outfile_prefix=str(tmp_path / 'out'), result_dir=str(tmp_path / 'scores'))
    for video in videos:
        play(metric, video, gt_label=data[f'{video}_gt'], pred_label=data[f'{video}_pred'])
    hist = sum(result['scores'][0] for result in metric.results)
    np.testing.assert_array_equal(hist, data['hist'])
    got = metric.evaluate(size=0)
    close(got['VIP/mIoU'], data['mean_iou'])
    close(got['VIP/mAcc'], data['mean_acc'])
    close(got['VIP/aAcc'], data['overall'])
    rows = json.loads((tmp_path / 'scores' / 'results.json').read_text())['per-class']
    close(np.array([row['IoU'] for row in rows], float), data['iou'])
    for t, pred in enumerate(data[f'{videos[0]}_pred']):
        saved = np.array(Image.open(tmp_path / 'out' / videos[0] / f'{t:05d}.png'))
        np.testing.assert_array_equal(saved, pred)


# ----------------------------------------------------------------------------- PCK


@pytest.mark.parametrize('file', files('pck'), ids=file_name)
def test_pck(file, tmp_path):
    data = np.load(file)
    params = json.loads(str(data['params']))
    metric = PCKMetric(outfile_prefix=str(tmp_path / 'out'), result_dir=str(tmp_path / 'scores'))
    for i in range(params['n']):
        pred = data[f'pred{i}'].transpose(2, 0, 1)
        gt = list(data[f'gt{i}'].transpose(2, 0, 1) - 1)
        num_frames = len(pred)
        play(
            metric,
            f'video{i}',
            pred_keypoints=pred,
            gt_keypoints=gt + [None] * (num_frames - len(gt)),
            grid=[(params['feat_res'],) * 2] * num_frames,
            ori_shape=[tuple(data[f'hw{i}'].tolist())] * num_frames,
        )
        saved = np.load(tmp_path / 'out' / f'video{i}.dat', allow_pickle=True)
        assert saved.dtype == np.float32
        np.testing.assert_array_equal(saved, data[f'pred{i}'])
    distances = np.concatenate([result['scores'] for result in metric.results])
    for joint, values in enumerate(distances.T):
        close(values[~np.isnan(values)], data[f'dist{joint}'])

    got = Evaluator(metric).evaluate(size=0)
    wanted = dict(zip(data['thresholds'].tolist(), data['pck']))
    close([got[f'JHMDB/PCK@{t}'] for t in wanted], [row[-1] for row in wanted.values()])
    rows = json.loads((tmp_path / 'scores' / 'results.json').read_text())['per-joint']
    for threshold, values in wanted.items():
        close([row[f'PCK@{threshold}'] for row in rows], values[:-1])
