import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

import videomac_mm  # noqa: F401  repairs OpenMMLab before anything else imports it
from videomac_mm.apis import LabelPropagationInferencer
from videomac_mm.datasets import SyntheticVideo, open_video
from videomac_mm.registry import MODELS

TOY = Path(__file__).parents[1] / 'toy' / 'propagation_config.py'
SIZE = (35, 51)
CRW = dict(
    topk=10,
    temperature=0.05,
    window_shape='disc',
    window_on_first=False,
    pad_with_first=True,
    keep_ties=False,
)
FLOAT = [
    dict(type='LoadFrame', to_float32=True),
    dict(type='mmengine.Resize', scale=(48, 48), keep_ratio=False),
    dict(type='PackFrame'),
]


@pytest.fixture
def video() -> SyntheticVideo:
    return SyntheticVideo(0, num_frames=4, size=SIZE)


@pytest.fixture
def cfg() -> Config:
    return Config.fromfile(TOY)


@pytest.fixture
def keypoint_cfg(cfg) -> Config:
    cfg.merge_from_dict(
        {
            'model.codec.type': 'KeypointCodec',
            'test_dataloader.dataset.form': 'keypoints',
            'test_evaluator.type': 'PCKMetric',
        }
    )
    return cfg


@pytest.fixture
def checkpoint(tmp_path, cfg) -> Path:
    """Weights that no initialisation gives."""
    init_default_scope('videomac_mm')
    model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def frames_of(video: SyntheticVideo) -> list[np.ndarray]:
    return [video.frame(t) for t in range(len(video))]


def run_test(cfg: Config, checkpoint: Path, folder: Path) -> Path:
    """The folder of the predictions of a test run."""
    cfg = cfg.copy()
    out = folder / 'predictions'
    cfg.merge_from_dict(
        {
            'work_dir': str(folder),
            'load_from': str(checkpoint),
            'test_evaluator.outfile_prefix': str(out),
        }
    )
    cfg.experiment_name = folder.name
    Runner.from_cfg(cfg).test()
    return out


def masks_in(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob('*.png'))])


def write_video(path: Path, frames: list[np.ndarray], fps: int) -> None:
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


# ----------------------------------------------------------------- the same as a test


@pytest.mark.parametrize('form', ['dino', 'crw'])
def test_inferencer__predicts_what_a_test_does(tmp_path, cfg, checkpoint, form):
    if form == 'crw':
        cfg.model.update(CRW, codec=dict(type='MaskCodec', label_resize='bilinear'))
    out = run_test(cfg, checkpoint, tmp_path)
    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    for seed in range(2):
        video = SyntheticVideo(seed, num_frames=4, size=SIZE)
        masks = inferencer(frames_of(video), video.mask(0))
        assert masks.dtype == np.uint8
        wanted = masks_in(out / f'synthetic_{seed:04d}')
        np.testing.assert_array_equal(masks, wanted)
        assert wanted[1].any() and (wanted[0] != wanted[1]).any()


def test_inferencer__predicts_the_points_of_a_test(tmp_path, keypoint_cfg, checkpoint, video):
    out = run_test(keypoint_cfg, checkpoint, tmp_path)
    cells = np.load(out / 'synthetic_0000.dat', allow_pickle=True).transpose(2, 0, 1)
    points = video.keypoints(0)[0].reshape(-1, 2).T
    got = LabelPropagationInferencer(keypoint_cfg, checkpoint)(frames_of(video), points)
    assert got.shape == (4, 2, 15)
    # The short side is 48 pixels, the long one 64; a cell has 8.
    wanted = cells * np.array([[51 / 8], [35 / 6]])
    np.testing.assert_allclose(got, np.where(cells < 0, np.nan, wanted), rtol=1e-6)


def test_inferencer__reads_folders_and_arrays_as_a_data_set_does(tmp_path, cfg, checkpoint):
    """Resized in float, squeezed, and with predictions in the size of the network's input."""
    video = SyntheticVideo(3, num_frames=11, size=SIZE)
    folder = tmp_path / 'JPEGImages/480p/dog'
    labels = tmp_path / 'Annotations/480p/dog'
    folder.mkdir(parents=True)
    labels.mkdir(parents=True)
    for t in range(11):
        cv2.imwrite(str(folder / f'{t}.jpg'), video.frame(t)[..., ::-1])
        Image.fromarray(video.mask(t)).save(labels / f'{t}.png')
    cfg.model.codec = dict(type='MaskCodec', label_resize='bilinear', output_size='image')
    cfg.test_dataloader.dataset = dict(type='DAVISDataset', data_root=str(tmp_path), pipeline=FLOAT)
    cfg.test_evaluator = dict(type='VIPMetric')
    run_test(cfg, checkpoint, tmp_path)
    wanted = []
    for t in range(11):
        small = Image.open(tmp_path / f'predictions/dog/{t}.png')
        assert small.size == (48, 48)
        wanted.append(np.asarray(small.resize(SIZE[::-1], Image.Resampling.NEAREST)))

    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    masks = inferencer(folder, labels / '0.png', out_dir=tmp_path / 'png')
    np.testing.assert_array_equal(masks, wanted)
    assert {file.name for file in (tmp_path / 'png').iterdir()} == {f'{t}.png' for t in range(11)}
    frames = (cv2.imread(str(folder / f'{t}.jpg'))[..., ::-1] for t in range(11))
    np.testing.assert_array_equal(inferencer(frames, video.mask(0)), wanted)


def test_inferencer__takes_the_weights_of_the_config(cfg, checkpoint):
    cfg.load_from = str(checkpoint)
    inferencer = LabelPropagationInferencer(cfg)
    weights = torch.load(checkpoint)['state_dict']
    for name, value in inferencer.model.state_dict().items():
        torch.testing.assert_close(value.cpu(), weights[name], rtol=0, atol=0)


# --------------------------------------------------------------------- files, streams


def test_inferencer__reads_and_writes_videos(tmp_path, cfg, checkpoint, video):
    write_video(tmp_path / 'in.mp4', [cv2.resize(f, (52, 36)) for f in frames_of(video)], fps=12)
    mask = cv2.resize(video.mask(0), (52, 36), interpolation=cv2.INTER_NEAREST)
    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    out = dict(out_file=tmp_path / 'out' / 'drawn.mp4', out_dir=tmp_path / 'png')
    masks = inferencer(tmp_path / 'in.mp4', mask, **out)

    frames = np.array(list(open_video(tmp_path / 'in.mp4')))
    np.testing.assert_array_equal(masks, inferencer(frames, mask))
    np.testing.assert_array_equal(masks, masks_in(tmp_path / 'png'))
    assert Image.open(tmp_path / 'png/00003.png').getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    drawn = open_video(out['out_file'])
    assert (len(drawn), drawn.fps, drawn.size) == (4, 12, (36, 52))
    # Twice compressed; but the tint is stronger.
    error = np.abs(np.array(list(drawn)).astype(int) - frames).mean(-1)
    assert error[masks == 0].mean() < 8 < error[masks > 0].mean()


def test_inferencer__draws_points(tmp_path, keypoint_cfg, checkpoint, video):
    points = np.array([[30.0], [20]])
    inferencer = LabelPropagationInferencer(keypoint_cfg, checkpoint)
    inferencer(frames_of(video), points, out_file=tmp_path / 'out.mp4', fps=5)
    drawn = open_video(tmp_path / 'out.mp4')
    assert (len(drawn), drawn.fps, drawn.size) == (4, 5, (36, 52))


def test_stream__takes_frames_as_they_are_asked_for(cfg, checkpoint, video):
    taken = []

    def endless() -> Iterator[np.ndarray]:
        for t in itertools.count():
            taken.append(t)
            yield video.frame(t % 4)

    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    stream = inferencer.stream(endless(), video.mask(0))
    first = [next(stream) for _ in range(3)]
    assert taken == [0, 1, 2]
    np.testing.assert_array_equal(first, inferencer(frames_of(video)[:3], video.mask(0)))
    with pytest.raises(RuntimeError, match='another video was started'):
        next(stream)


def test_stream__that_is_left_early_leaves_a_whole_file(tmp_path, cfg, checkpoint, video):
    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    stream = inferencer.stream(frames_of(video), video.mask(0), out_file=tmp_path / 'a.mp4')
    next(stream), next(stream)
    stream.close()
    assert len(open_video(tmp_path / 'a.mp4')) == 2


# -------------------------------------------------------------------------- first labels


def test_first_label__may_be_empty(cfg, checkpoint, video):
    empty = np.zeros(SIZE, np.int64)
    assert not LabelPropagationInferencer(cfg, checkpoint)(frames_of(video), empty).any()


def test_first_label__255_is_void_but_the_object_of_a_binary_mask(cfg, checkpoint, video):
    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    frames, mask = frames_of(video), video.mask(0)
    binary = inferencer(frames, mask > 0)
    assert set(np.unique(binary)) == {0, 1}
    np.testing.assert_array_equal(inferencer(frames, 255 * np.uint8(mask > 0)), binary)
    void = np.where(mask == 3, 255, mask)
    np.testing.assert_array_equal(
        inferencer(frames, void), inferencer(frames, np.where(mask == 3, 0, mask))
    )


@pytest.mark.parametrize(
    'label, message',
    [
        (None, 'propagates masks: .*, got None'),
        (np.zeros((2, 15)), r'propagates masks: .*, got float64 of shape \(2, 15\)'),
        (np.zeros((2, 15), int), r'must have one size: \(2, 15\) and \(35, 51\)'),
        (np.zeros((*SIZE, 3), int), r'propagates masks: .* \(35, 51, 3\)'),
        (np.full(SIZE, 256), r'ids must lie in \[0, 255\], got 256 to 256'),
        ('colours.png', "colours.png has mode 'RGB'"),
    ],
)
def test_first_label__wrong_masks_are_explained(
    tmp_path, monkeypatch, cfg, checkpoint, video, label, message
):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', SIZE[::-1]).save('colours.png')
    with pytest.raises(ValueError, match=message):
        LabelPropagationInferencer(cfg, checkpoint)(frames_of(video), label)


@pytest.mark.parametrize(
    'label, message',
    [
        (None, 'propagates key-points: .*, got None'),
        ('mask.png', "propagates key-points: .*, got 'mask.png'"),
        (np.zeros(SIZE, np.uint8), r'key-points: .*\(2, K\), got uint8 of shape \(35, 51\)'),
        (np.zeros((15, 2)), r'key-points: .*\(2, K\), got float64 of shape \(15, 2\)'),
        ([[np.nan, 1], [2, 3]], 'must be finite'),
    ],
)
def test_first_label__wrong_points_are_explained(keypoint_cfg, checkpoint, video, label, message):
    with pytest.raises(ValueError, match=message):
        LabelPropagationInferencer(keypoint_cfg, checkpoint)(frames_of(video), label)


# -------------------------------------------------------------------------------- errors


def test_video__what_cannot_be_read_is_named(tmp_path, cfg, checkpoint, video):
    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    mask = video.mask(0)
    (tmp_path / 'garbage.mp4').write_bytes(b'garbage')
    (tmp_path / 'empty').mkdir()
    for given, error, message in [
        (tmp_path / 'gone.mp4', FileNotFoundError, 'no video file or folder .*gone.mp4'),
        (tmp_path / 'garbage.mp4', ValueError, 'cannot read .*garbage.mp4'),
        (tmp_path / 'empty', ValueError, 'no frames in .*empty'),
        ([], ValueError, 'the video has no frames'),
        ([video.frame(0) / 255], ValueError, 'frame 0 is float64'),
        ([video.frame(0), np.zeros((40, 51, 3), np.uint8)], ValueError, r'frame 1 has \(40, 51\)'),
    ]:
        with pytest.raises(error, match=message):
            inferencer(given, mask)


def test_video__a_damaged_frame_is_named(data_dir, cfg, checkpoint):
    """Frames before it are good."""
    path = data_dir / 'broken' / 'corrupted.mp4'
    size = open_video(path).size
    inferencer = LabelPropagationInferencer(cfg, checkpoint)
    with pytest.raises(ValueError, match='cannot decode frame [0-9]+: .*corrupted.mp4'):
        for _ in inferencer.stream(path, np.zeros(size, np.uint8)):
            pass


def test_inferencer__needs_label_propagation(tmp_path, cfg, keypoint_cfg, video):
    inferencer = LabelPropagationInferencer(keypoint_cfg)
    with pytest.raises(ValueError, match='out_dir is for masks'):
        inferencer(frames_of(video), np.zeros((2, 1)), out_dir=tmp_path)
    cfg.model = dict(type='SparseResNet', depth=18)
    with pytest.raises(TypeError, match='whose model is LabelPropagator, got SparseResNet'):
        LabelPropagationInferencer(cfg)
