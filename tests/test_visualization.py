import errno
import io
import math
import os
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

import videomac_mm  # noqa: F401  repairs OpenMMLab before anything else imports it
from videomac_mm import visualization
from videomac_mm.datasets import SyntheticVideo, open_video
from videomac_mm.visualization import (
    PALETTE,
    ContactSheet,
    VideoWriter,
    draw_keypoints,
    draw_mask,
    keypoints_in_pixels,
)


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    """Object 1 on the left, object 3 beside it, background around both."""
    mask = np.zeros((20, 30), np.uint8)
    mask[4:16, 5:15] = 1
    mask[4:16, 15:25] = 3
    return mask


def grey(value: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


# --------------------------------------------------------------------------- labels


def test_draw_mask__tints_objects_and_nothing_else(frame, mask):
    before = frame.copy()
    out = draw_mask(frame, mask, alpha=0.25, contour=False)
    assert (out[mask == 0] == frame[mask == 0]).all()
    for number, colour in ((1, (128, 0, 0)), (3, (128, 128, 0))):
        wanted = 0.75 * frame[mask == number] + 0.25 * np.array(colour)
        np.testing.assert_allclose(out[mask == number], wanted, atol=0.51)
    assert (frame == before).all()


def test_draw_mask__outlines_objects_from_inside(frame, mask):
    out = draw_mask(frame, mask, alpha=0)
    changed = (out != frame).any(-1)
    inner = np.zeros_like(changed)
    inner[5:15, 6:14] = inner[5:15, 16:24] = True
    assert (changed == ((mask > 0) & ~inner)).all()
    assert (out[changed] == PALETTE[mask[changed]]).all()


def test_draw_mask__brings_masks_to_the_size_of_the_frame(frame, mask):
    small = draw_mask(frame, mask[::2, ::2])
    assert (small == draw_mask(frame, mask[::2, ::2].repeat(2, 0).repeat(2, 1))).all()


def test_draw_keypoints__dots_in_their_own_colours_but_no_lost_ones(frame):
    points = np.array([[4, np.nan, 25.4], [6, np.nan, 12.6]])
    out = draw_keypoints(frame, points)
    assert (out[6, 4] == PALETTE[1]).all()
    assert (out[13, 25] == PALETTE[3]).all()
    y, x = np.mgrid[:20, :30]
    far = (np.hypot(x - 4, y - 6) > 5) & (np.hypot(x - 25, y - 13) > 5)
    assert (out[far] == frame[far]).all()
    assert (draw_keypoints(frame, np.full((2, 4), np.nan)) == frame).all()


def test_keypoints_in_pixels__scales_each_axis_and_marks_lost_ones():
    points = np.array([[2, -1, 0.5], [1, -1, 0]], np.float32)
    out = keypoints_in_pixels(points, grid=(4, 8), size=(40, 160))
    np.testing.assert_array_equal(out, np.float32([[40, np.nan, 10], [10, np.nan, 0]]))
    assert out.dtype == np.float32


# ---------------------------------------------------------------------------- video


def test_video_writer__odd_sizes_get_another_row_and_column(tmp_path):
    path = tmp_path / 'a' / 'b#1.c.mp4'
    picture = np.zeros((33, 51, 3), np.uint8)
    picture[..., 0] = 200
    with VideoWriter(path, fps=12) as writer:
        for _ in range(5):
            writer.write(picture)
    reader = open_video(path)
    assert (len(reader), reader.fps, reader.size) == (5, 12, (34, 52))
    last = reader.read([4])[0]
    np.testing.assert_allclose(last[..., 0], 200, atol=4)  # red is first, and the border too
    np.testing.assert_allclose(last[..., 1:], 0, atol=4)


@pytest.mark.parametrize('size', [(32, 48), (720, 1280)])
def test_video_writer__writes_what_browsers_play(tmp_path, size):
    path = tmp_path / 'a.mp4'
    colour = (180, 40, 90)
    with VideoWriter(path, fps=29.97) as writer:
        for _ in range(3):
            writer.write(np.full((*size, 3), colour, np.uint8))
    data = path.read_bytes()
    assert 0 < data.index(b'moov') < data.index(b'mdat'), 'the index comes first'
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
        assert stream.average_rate == Fraction(30000, 1001) or float(stream.average_rate) == 29.97
        frame = next(container.decode(stream))
        assert (int(frame.colorspace), int(frame.color_range)) == (1, 1), 'BT.709, limited'
        difference = frame.to_ndarray(format='rgb24').astype(int) - colour
        assert np.abs(difference).max() <= 3


def test_video_writer__finishes_what_was_written_before_an_error(tmp_path):
    path = tmp_path / 'a.mp4'
    with pytest.raises(KeyError), VideoWriter(path) as writer:
        for value in range(4):
            writer.write(grey(50 * value))
        raise KeyError
    writer.close()  # again
    assert len(open_video(path)) == 4
    with VideoWriter(tmp_path / 'none.mp4'):
        pass
    assert not (tmp_path / 'none.mp4').exists(), 'a film of no frames is no file'


@pytest.mark.parametrize('fps', [0.5, 12, 23.976, 29.97, 30000 / 1001, np.float32(24)])
def test_video_writer__keeps_the_rate_of_any_number_of_frames(tmp_path, fps):
    for number in (1, 3):
        with VideoWriter(tmp_path / 'a.mp4', fps) as writer:
            for value in range(number):
                writer.write(grey(60 * value))
        reader = open_video(tmp_path / 'a.mp4')
        assert len(reader) == number
        assert reader.fps == pytest.approx(float(fps), rel=1e-9)


def test_video_writer__takes_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('run:1.mp4', 'ä %d.mp4', 'file:b.mp4'):  # the first is no protocol of FFmpeg
        with VideoWriter(name) as writer:
            writer.write(grey(0))
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.video[0].frames == 1


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may do all')
def test_video_writer__names_the_film_where_it_may_not_write(tmp_path):
    (tmp_path / 'closed').mkdir(mode=0o500)
    with pytest.raises(OSError, match=r'cannot write .*a\.mp4 \(30x20 .*Permission denied'):
        VideoWriter(tmp_path / 'closed' / 'a.mp4').write(grey(0))


@pytest.mark.parametrize('room', [0, 50_000])
def test_video_writer__closes_the_file_when_the_disk_is_full(tmp_path, monkeypatch, room):
    files = []

    class Full(visualization._File):
        def write(self, data):
            files.append(self)
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return super().write(data)

    monkeypatch.setattr(visualization, '_File', Full)
    noise = np.random.default_rng(0).integers(0, 256, (100, 96, 96, 3), dtype=np.uint8)
    writer = VideoWriter(tmp_path / 'a.mp4')
    with pytest.raises(OSError, match=r'cannot write .*a\.mp4 \(96x96 .*No space left'):
        for picture in noise:
            writer.write(picture)
    assert files[-1].closed
    writer.close()


def test_video_writer__writes_all_of_what_the_system_takes_in_parts(tmp_path, monkeypatch):
    class System(io.FileIO):
        def write(self, data):
            return super().write(data[:100])

    class File(visualization._File, System):
        pass

    monkeypatch.setattr(visualization, '_File', File)
    with VideoWriter(tmp_path / 'a.mp4') as writer:
        for value in range(5):
            writer.write(grey(50 * value))
    assert len(open_video(tmp_path / 'a.mp4')) == 5


def test_video_writer__without_h264_says_so_once_and_keeps_the_quality(tmp_path, monkeypatch):
    video = SyntheticVideo(0, 12, (128, 128))
    film = [video.frame(t) for t in range(12)]
    monkeypatch.setattr(av, 'codecs_available', av.codecs_available - {'libx264', 'libopenh264'})
    visualization._encoder.cache_clear()
    try:
        with pytest.warns(UserWarning, match='MPEG-4, which browsers do not play'):
            with VideoWriter(tmp_path / 'a.mp4') as writer:
                for picture in film:
                    writer.write(picture)
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # once is enough
            with VideoWriter(tmp_path / 'b.mp4') as writer:
                writer.write(grey(0))
    finally:
        visualization._encoder.cache_clear()
    with av.open(str(tmp_path / 'a.mp4')) as container:
        assert container.streams.video[0].codec_context.name == 'mpeg4'
        decoded = [picture.to_ndarray(format='rgb24') for picture in container.decode(video=0)]
    error = np.mean((np.array(decoded, float) - film) ** 2)
    assert 10 * math.log10(255**2 / error) > 32, 'dB; 27 with the usual options of FFmpeg'


def test_video_writer__says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"must end in '.mp4', got 'a.avi'"):
        VideoWriter('a.avi')
    for fps in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f'fps must be positive, got {fps}'):
            VideoWriter('a.mp4', fps=fps)
    for fps in (1e-4, 1e6):
        with pytest.raises(ValueError, match=r'fps must lie in \[0.001, 65535\], got'):
            VideoWriter('a.mp4', fps=fps)
    for frame in (grey(0)[..., 0], grey(0).astype(np.float32), grey(0)[:0]):
        with pytest.raises(ValueError, match=r'must be \(H, W, 3\) uint8, got'):
            VideoWriter(tmp_path / 'b.mp4').write(frame)
    (tmp_path / 'folder.mp4').mkdir()
    with pytest.raises(OSError, match=r'cannot write .*folder.mp4 \(30x20 pixels'):
        VideoWriter(tmp_path / 'folder.mp4').write(grey(0))
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file' / 'a.mp4', tmp_path / 'file' / 'b' / 'a.mp4'):
        with pytest.raises(OSError, match=r'cannot write .*a.mp4 \(30x20 pixels'):
            VideoWriter(path).write(grey(0))
    with VideoWriter(tmp_path / 'a.mp4') as writer:
        writer.write(grey(0))
        with pytest.raises(ValueError, match=r'the first has \(20, 30, 3\), another \(30, 30, 3\)'):
            writer.write(grey(0, (30, 30)))


# ---------------------------------------------------------------------------- sheet


def test_contact_sheet__shows_evenly_spread_frames_and_marks_the_first():
    sheet = ContactSheet(num_frames=101, num_pictures=5, columns=3, width=90)
    for value in range(101):
        sheet.add(grey(value))
    picture = sheet.picture()
    assert picture.shape == (2 * 60, 3 * 90, 3)
    tiles = [picture[y : y + 60, x : x + 90] for y in (0, 60) for x in (0, 90, 180)]
    values = [tile[45, 70].tolist() for tile in tiles]
    assert values == [[v] * 3 for v in (0, 25, 50, 75, 100, 255)]
    green = [(tile[0] == (0, 255, 0)).all() for tile in tiles]
    assert green == [True, False, False, False, False, False]


def test_contact_sheet__of_a_short_video_has_every_frame_once():
    sheet = ContactSheet(num_frames=2, num_pictures=8)
    for value in (50, 60):
        sheet.add(grey(value))
    assert sheet.picture().shape == (213, 640, 3)
    with pytest.raises(ValueError, match='must be positive, got 2, 0, 4 and 320'):
        ContactSheet(2, num_pictures=0)


def test_contact_sheet__keeps_small_pictures_only():
    sheet = ContactSheet(num_frames=50, num_pictures=2, width=32)
    big = np.zeros((480, 854, 3), np.uint8)
    for _ in range(50):
        sheet.add(big)
    assert sum(picture.nbytes for picture in sheet._pictures) == 2 * 18 * 32 * 3
