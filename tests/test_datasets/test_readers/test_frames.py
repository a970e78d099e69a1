import av
import cv2
import numpy as np
import pytest

from tests.films import encode
from videomac_mm.datasets.readers.frames import PlanarFrame, rgb_matrix
from videomac_mm.datasets.readers.pyav import PyAVReader, raw, to_rgb


@pytest.mark.parametrize('colorspace', ['ITU601', 'ITU709'])
@pytest.mark.parametrize('full', [False, True])
def test_rgb_matrix__is_swscales(colorspace, full):
    rng = np.random.default_rng(0)
    levels = (0, 256) if full else (16, 236)
    yuv = rng.integers(*levels, size=(3, 32, 32), dtype=np.uint8)
    yuv[1:] = rng.integers(100, 156, size=(2, 32, 32))
    frame = av.VideoFrame.from_ndarray(yuv, format='yuv444p')
    expected = frame.reformat(
        format='rgb24',
        src_colorspace=colorspace,
        src_color_range='JPEG' if full else 'MPEG',
        dst_color_range='JPEG',
    ).to_ndarray()
    matrix = rgb_matrix({'ITU601': 5, 'ITU709': 1}[colorspace], full)
    got = cv2.transform(np.ascontiguousarray(yuv.transpose(1, 2, 0)), matrix)
    assert np.abs(got.astype(int) - expected).max() <= 2


@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuv422p', 'yuv444p', 'yuvj420p'])
@pytest.mark.parametrize('turns', [0, 1, 2, 3])
def test_planar_frame__crop_equals_that_of_the_rgb_picture(pix_fmt, turns):
    # smooth, for chroma is interpolated otherwise
    y, x = np.mgrid[:90, :120]
    img = np.stack([40 + x, 60 + y, 200 - (x + y) / 2], -1).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(img, format='rgb24').reformat(format=pix_fmt)
    picture = np.rot90(raw(frame, planar=False).planes[0], turns)
    planar = PlanarFrame(raw(frame, planar=True)._replace(turns=turns))
    assert planar.shape == picture.shape[:2]
    for box in ([0, 0, 90, 90], [11, 7, 80, 66], [4, 20, 85, 89]):
        left, top, right, bottom = box
        got = planar.crop_resize(box, (40, 32), cv2.INTER_CUBIC)
        part = np.ascontiguousarray(picture[top:bottom, left:right])
        expected = cv2.resize(part, (40, 32), interpolation=cv2.INTER_CUBIC)
        assert got.shape == (32, 40, 3) and got.dtype == np.uint8
        difference = np.abs(got.astype(int) - expected)
        assert difference.mean() < 2 and difference.max() <= 6


def test_reader__other_formats_become_rgb(tmp_path):
    reader = PyAVReader(encode(tmp_path / 'v.mkv', num_frames=3, pix_fmt='yuv420p10le'))
    frame = reader.read([1], planar=True)[0]
    assert isinstance(frame, np.ndarray) and frame.shape == (48, 64, 3)


@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuv422p', 'yuvj420p'])
def test_to_rgb__is_what_the_decoder_would_have_given(tmp_path, pix_fmt):
    reader = PyAVReader(encode(tmp_path / 'v.mkv', num_frames=3, pix_fmt=pix_fmt))
    (planar,), (expected,) = reader.read_raw([1], planar=True), reader.read([1])
    assert len(planar.planes) == 3
    np.testing.assert_array_equal(to_rgb(planar), expected)
