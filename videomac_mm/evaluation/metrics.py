"""Metrics of label propagation, for videos that arrive frame by frame.

A test loop gives them one sample per frame (batch size 1), the frames of a video in order and
whole videos to each process. A sample is a dict with

* ``video``, ``frame_id`` (from 0), ``num_frames``, ``img_path``: which frame it is;
* ``gt_label`` (H, W) uint8 or ``gt_keypoints`` (2, K) float64, x and y in pixels from 0:
  absent where the frame is not annotated;
* ``pred_label`` (H, W) uint8, or ``pred_keypoints`` (2, K) float32, x and y in cells of the
  feature ``grid`` (h, w), -1 = lost, with ``ori_shape`` (H, W) of the frame.

Frames are scored on arrival and only numbers are kept, so videos may be long.
"""

import csv
import io
import json
import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from PIL import Image

from videomac_mm.evaluation.functional import (
    class_accuracy,
    class_iou,
    confusion_matrix,
    contour_accuracy,
    davis_palette,
    keypoint_distances,
    pck,
    pixel_accuracy,
    region_similarity,
    sequence_statistics,
)
from videomac_mm.registry import METRICS

Table = list[dict[str, Any]]


class VideoMetric(BaseMetric):
    """Base of the metrics of this file: follows the videos, keeps one result for each.

    Args:
        outfile_prefix: folder for the predictions, in the layout the official program reads.
            Frames without annotation are saved too. Defaults to None (not saved).
        result_dir: folder for the scores: all tables unrounded in ``results.json``, and each in
            a CSV file with three decimals. Defaults to None (not written; the log has the first
            table in any case).
        format_only: save the predictions and score nothing, for test sets without public
            annotation. Defaults to False.
        prefix: of the names of the metrics. Defaults to None (the name of the benchmark).

    Raises:
        ValueError: at construction, if ``format_only`` is set without ``outfile_prefix``, or the
            two folders are one; later, if frames come out of order or a prediction is missing.
    """

    global_table = 'global'

    def __init__(
        self,
        outfile_prefix: str | None = None,
        result_dir: str | None = None,
        format_only: bool = False,
        prefix: str | None = None,
    ) -> None:
        super().__init__(prefix=prefix)
        if format_only and outfile_prefix is None:
            raise ValueError('format_only needs outfile_prefix, the folder to save to, got None')
        if outfile_prefix is not None and outfile_prefix == result_dir:
            raise ValueError(
                'outfile_prefix and result_dir must differ, for official programs take CSV files '
                f'beside the predictions for their own; got {result_dir!r} for both'
            )
        self.outfile_prefix = None if outfile_prefix is None else Path(outfile_prefix)
        self.result_dir = None if result_dir is None else Path(result_dir)
        self.format_only = format_only
        self._awaited: tuple[str, int] | None = None  # video and frame, inside a video
        self._scores: list[np.ndarray] = []  # of that video

    @abstractmethod
    def save_frame(self, sample: dict) -> None:
        """Save the prediction of a frame below ``outfile_prefix``."""

    @abstractmethod
    def score_frame(self, sample: dict, scores: list[np.ndarray]) -> None:
        """Add the score of a frame to ``scores``, those of its video so far."""

    @abstractmethod
    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """The numbers of the whole data set, from one result per video, sorted by name."""

    @abstractmethod
    def tables(self, results: list[dict]) -> dict[str, Table]:
        """The numbers of its parts: rows under the stem of each CSV file."""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score and save frames.

        Args:
            data_batch: not used.
            data_samples: see the top of this file.
        """
        for sample in data_samples:
            self._follow(sample)
            if self.outfile_prefix is not None:
                self.save_frame(sample)
            if not self.format_only:
                self.score_frame(sample, self._scores)
            if self._awaited is None:
                scores = np.stack(self._scores) if self._scores else None
                self.results.append(dict(video=sample['video'], scores=scores))

    def evaluate(self, size: int) -> dict[str, float]:
        """Compute the metrics over the videos of all processes.

        mmengine's own way of collecting takes as many results as there are samples and equally
        many from each process; here a result is a video, and processes differ. Every process
        computes the (few) numbers itself, so that an error ends all of them alike.

        Args:
            size: not used.

        Returns:
            Values by name, with the prefix.

        Raises:
            ValueError: if a video is incomplete or nothing was scored.
        """
        gathered = all_gather_object((self.results, self._awaited))
        self.results, self._awaited = [], None
        for _, awaited in gathered:
            if awaited is not None:
                raise ValueError(
                    f'video {awaited[0]!r} is incomplete: frame {awaited[1]} was awaited next'
                )
        if self.format_only:
            print_log(f'Predictions are in {self.outfile_prefix}', logger='current')
            return {}

        # A sampler may give a video to two processes, to even out their shares.
        videos = {result['video']: result for results, _ in gathered for result in results}
        scored = [videos[name] for name in sorted(videos) if videos[name]['scores'] is not None]
        unscored = sorted(set(videos) - {result['video'] for result in scored})
        if not scored:
            raise ValueError(
                f'nothing to evaluate: {type(self).__name__} got {len(videos)} videos, none of '
                'which has a frame to score; set format_only if there is no annotation'
            )
        if unscored:
            print_log(
                f'{type(self).__name__} leaves out {len(unscored)} of {len(videos)} videos, '
                f'which have no scored frame: {", ".join(unscored)}',
                logger='current',
                level=logging.WARNING,
            )
        metrics = self.compute_metrics(scored)
        tables = {**self.tables(scored), self.global_table: [metrics]}
        name, rows = next(iter(tables.items()))
        print_log(f'{self.prefix} {name}\n{_to_csv(rows)}', logger='current')
        if self.result_dir is not None and is_main_process():
            self._write(tables)
        return {f'{self.prefix}/{name}': value for name, value in metrics.items()}

    def prediction(self, sample: dict, key: str) -> np.ndarray:
        """What the sample predicts.

        Raises:
            ValueError: if it predicts nothing; names the frame and what the sample has.
        """
        if key not in sample:
            raise ValueError(
                f'{type(self).__name__} needs {key!r} in {_name(sample)}, got only {sorted(sample)}'
            )
        return sample[key]

    def names(self, key: str, number: int) -> Sequence:
        """Names from the data set's metainfo, else numbers."""
        names = (self.dataset_meta or {}).get(key, ())
        return names if len(names) == number else range(number)

    def _follow(self, sample: dict) -> None:
        here = sample['video'], sample['frame_id']
        wanted = self._awaited or (sample['video'], 0)
        if here != wanted:
            raise ValueError(
                f'{type(self).__name__} needs whole videos with their frames in order: frame '
                f'{wanted[1]} of {wanted[0]!r} was awaited, got {_name(sample)}'
            )
        if sample['frame_id'] == 0:
            self._scores = []
        self._awaited = None if _is_last(sample) else (here[0], here[1] + 1)

    def _label_file(self, sample: dict) -> Path:
        file = self.outfile_prefix / sample['video'] / f'{Path(sample["img_path"]).stem}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _write(self, tables: dict[str, Table]) -> None:
        self.result_dir.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            (self.result_dir / f'{name}.csv').write_text(_to_csv(rows))
        text = json.dumps({name: _without_nan(rows) for name, rows in tables.items()}, indent=1)
        (self.result_dir / 'results.json').write_text(text)


@METRICS.register_module()
class DAVISMetric(VideoMetric):
    """J&F of semi-supervised video object segmentation on DAVIS-2017, each number in [0, 1].

    The rules of davis2017-evaluation: objects are the ids 1 … max of the first ground truth, 255
    is background; the first and the last annotated frame are not scored; the mean is over
    objects, not over videos. Decays of more than 256 scored frames mean nothing and may be NaN
    (see :func:`sequence_statistics`). ``pred_label`` has the size of ``gt_label``; a prediction
    of more objects than there are is an error.

    Metrics: ``J&F-Mean``, ``J-Mean``, ``J-Recall``, ``J-Decay``, ``F-Mean``, ``F-Recall``,
    ``F-Decay``. Tables: ``per-object``, and the two of the official program,
    ``per-sequence_results-val`` and ``global_results-val``. Predictions are saved as
    ``<outfile_prefix>/<video>/<frame>.png``, indexed, with the palette of DAVIS.

    Paper: https://arxiv.org/abs/1704.00675. Arguments: see :class:`VideoMetric`.
    """

    default_prefix = 'DAVIS'
    global_table = 'global_results-val'
    statistics = ('J-Mean', 'J-Recall', 'J-Decay', 'F-Mean', 'F-Recall', 'F-Decay')

    _num_objects: int | None  # of the current video, None without a first ground truth

    def save_frame(self, sample: dict) -> None:
        image = Image.fromarray(self.prediction(sample, 'pred_label'))
        image.putpalette(davis_palette().tobytes())
        image.save(self._label_file(sample))

    def score_frame(self, sample: dict, scores: list[np.ndarray]) -> None:
        """Append the (2, N) J and F of the objects."""
        gt = sample.get('gt_label')
        if gt is not None:
            gt = np.where(gt == 255, 0, gt)
        if sample['frame_id'] == 0:
            self._num_objects = None if gt is None else int(gt.max())
            if self._num_objects == 0:
                raise ValueError(f'{_name(sample)} must show the objects, got an empty gt_label')
        elif _is_last(sample):
            if gt is None and scores:
                scores.pop()  # that of the last annotated frame
        elif gt is not None:
            scores.append(self._score(self._checked_prediction(sample, gt), gt))

    def _checked_prediction(self, sample: dict, gt: np.ndarray) -> np.ndarray:
        if self._num_objects is None:
            raise ValueError(
                f'{_name(sample)} has a gt_label, but the first frame, whose objects are scored, '
                'has none'
            )
        pred = self.prediction(sample, 'pred_label')
        if pred.shape != gt.shape:
            raise ValueError(
                f'pred_label of {_name(sample)} must be as large as gt_label, {gt.shape}, '
                f'got {pred.shape} (H, W)'
            )
        if pred.max() > self._num_objects:
            raise ValueError(
                f'pred_label of {_name(sample)} must not exceed {self._num_objects}, the number '
                f'of objects in the first gt_label, got {pred.max()}'
            )
        return pred

    def _score(self, pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
        masks = [(pred == i, gt == i) for i in range(1, self._num_objects + 1)]
        j = [region_similarity(*pair) for pair in masks]
        f = [contour_accuracy(*pair) for pair in masks]
        return np.array([j, f])

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        objects = self._objects(results)
        means = {name: float(np.mean([row[name] for row in objects])) for name in self.statistics}
        return {'J&F-Mean': (means['J-Mean'] + means['F-Mean']) / 2, **means}

    def tables(self, results: list[dict]) -> dict[str, Table]:
        long = [result['video'] for result in results if len(result['scores']) > 256]
        if long:
            print_log(
                'J-Decay and F-Decay mean nothing for more than 256 scored frames, as the '
                f'official program counts them in 8 bits: {", ".join(long)}',
                logger='current',
                level=logging.WARNING,
            )
        objects = self._objects(results)
        official = ('Sequence', 'J-Mean', 'F-Mean')
        return {
            'per-object': objects,
            'per-sequence_results-val': [{key: row[key] for key in official} for row in objects],
        }

    def _objects(self, results: list[dict]) -> Table:
        """The statistics of each object of each video."""
        rows = []
        for result in results:
            for i, (j, f) in enumerate(result['scores'].transpose(2, 1, 0), start=1):
                values = (*sequence_statistics(j), *sequence_statistics(f))
                name = f'{result["video"]}_{i}'
                rows.append(dict(Sequence=name, **dict(zip(self.statistics, values))))
        return rows


@METRICS.register_module()
class VIPMetric(VideoMetric):
    """mIoU of the propagation of body parts on VIP, each number in [0, 1].

    The rules of CRW's eval_vip.py: one confusion matrix over all pixels of all annotated frames,
    the first included; the mean is over the 20 classes, background included, that occur in
    ground truth or prediction; other ids of the ground truth (255) are left out.
    ``pred_label`` may have another size than ``gt_label`` and is brought to it by nearest
    neighbour.

    Metrics: ``mIoU``, ``mAcc`` (mean accuracy of the classes), ``aAcc`` (of all pixels).
    Tables: ``per-class`` and ``per-video``. Predictions are saved as
    ``<outfile_prefix>/<video>/<frame>.png``, grey = id, in the size of ``pred_label``.

    Paper: https://arxiv.org/abs/1808.00661. Arguments: see :class:`VideoMetric`.
    """

    default_prefix = 'VIP'
    num_classes = 20

    def save_frame(self, sample: dict) -> None:
        Image.fromarray(self.prediction(sample, 'pred_label')).save(self._label_file(sample))

    def score_frame(self, sample: dict, scores: list[np.ndarray]) -> None:
        """Add the confusion matrix to the only entry."""
        if 'gt_label' not in sample:
            return
        gt, pred = sample['gt_label'], self.prediction(sample, 'pred_label')
        if pred.shape != gt.shape:
            # of PIL, for the other libraries round differently
            pred = np.array(Image.fromarray(pred).resize(gt.shape[::-1], Image.Resampling.NEAREST))
        try:
            confusion = confusion_matrix(pred, gt, self.num_classes)
        except ValueError as err:
            raise ValueError(f'{_name(sample)}: {err}') from err
        scores[:] = [sum(scores, confusion)]

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        return self._summary(self._confusion(results))

    def tables(self, results: list[dict]) -> dict[str, Table]:
        confusion = self._confusion(results)
        names = self.names('classes', self.num_classes)
        return {
            'per-class': [
                {'class': name, 'IoU': float(iou), 'Acc': float(accuracy)}
                for name, iou, accuracy in zip(
                    names, class_iou(confusion), class_accuracy(confusion)
                )
            ],
            'per-video': [
                dict(video=result['video'], **self._summary(self._confusion([result])))
                for result in results
            ],
        }

    @staticmethod
    def _confusion(results: list[dict]) -> np.ndarray:
        return sum(result['scores'][0] for result in results)

    @staticmethod
    def _summary(confusion: np.ndarray) -> dict[str, float]:
        return dict(
            mIoU=_mean(class_iou(confusion)),
            mAcc=_mean(class_accuracy(confusion)),
            aAcc=pixel_accuracy(confusion),
        )


@METRICS.register_module()
class PCKMetric(VideoMetric):
    """PCK of the propagation of joints on JHMDB, each number in percent.

    The rules of CRW's eval_pck.py: distances relative to 0.6 times the diagonal of a box around
    the person (see :func:`keypoint_distances`); all annotated frames but the first; joints the
    prediction has lost are not counted; PCK is the plain mean over the joints. A joint that is
    never counted stops the official program; here it is left out with a warning.

    Metrics: ``PCK@0.1`` … ``PCK@0.5``. Tables: ``per-joint`` and ``per-video``. Predictions are
    saved as ``<outfile_prefix>/<video>.dat``, the pickled (2, K, T) float32 x and y in cells; the
    official program numbers these files (``0.dat`` …) in the order of its list of videos.

    Paper: https://arxiv.org/abs/2006.14613 (CRW). Arguments: see :class:`VideoMetric`.
    """

    default_prefix = 'JHMDB'
    thresholds = (0.1, 0.2, 0.3, 0.4, 0.5)

    _keypoints: list[np.ndarray]  # predicted in the current video, to be saved

    def save_frame(self, sample: dict) -> None:
        if sample['frame_id'] == 0:
            self._keypoints = []
        self._keypoints.append(np.float32(self.prediction(sample, 'pred_keypoints')))
        if _is_last(sample):
            file = self.outfile_prefix / f'{sample["video"]}.dat'
            file.parent.mkdir(parents=True, exist_ok=True)
            np.stack(self._keypoints, axis=-1).dump(file)

    def score_frame(self, sample: dict, scores: list[np.ndarray]) -> None:
        """Append the (K,) distances."""
        if sample['frame_id'] == 0 or 'gt_keypoints' not in sample:
            return
        gt, pred = sample['gt_keypoints'], self.prediction(sample, 'pred_keypoints')
        if pred.shape != gt.shape:
            raise ValueError(
                f'pred_keypoints of {_name(sample)} must have the shape of gt_keypoints, '
                f'{gt.shape}, got {pred.shape}'
            )
        scores.append(keypoint_distances(pred, gt, sample['grid'], sample['ori_shape']))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        return self._summary(self._pck(results))

    def tables(self, results: list[dict]) -> dict[str, Table]:
        joints = self._pck(results).T
        names = self.names('keypoints', len(joints))
        never = [str(name) for name, values in zip(names, joints) if np.isnan(values).any()]
        if never:
            print_log(
                f'PCK leaves out joints that no scored frame has: {", ".join(never)}',
                logger='current',
                level=logging.WARNING,
            )
        return {
            'per-joint': [
                dict(joint=name, **self._summary(values[:, None]))
                for name, values in zip(names, joints)
            ],
            'per-video': [
                dict(video=result['video'], **self._summary(self._pck([result])))
                for result in results
            ],
        }

    def _pck(self, results: list[dict]) -> np.ndarray:
        """(number of thresholds, K)."""
        return pck(np.concatenate([result['scores'] for result in results]), self.thresholds)

    def _summary(self, values: np.ndarray) -> dict[str, float]:
        return {f'PCK@{limit}': _mean(row) for limit, row in zip(self.thresholds, values)}


def _is_last(sample: dict) -> bool:
    return sample['frame_id'] == sample['num_frames'] - 1


def _name(sample: dict) -> str:
    return f'frame {sample["frame_id"]} of {sample["video"]!r}'


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _to_csv(rows: Table) -> str:
    """As pandas writes it with ``float_format='%.3f'``: NaN is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator='\n')
    writer.writeheader()
    for row in _without_nan(rows):
        writer.writerow({k: f'{v:.3f}' if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def _without_nan(rows: Table) -> Table:
    """The rows, with None for NaN."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in rows
    ]
