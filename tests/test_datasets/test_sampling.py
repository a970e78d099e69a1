import numpy as np
import pytest

from videomac_mm.datasets import OpenVideo, SampleClips, SampleFramePair, UnusableVideoError


class Reader:
    """As much of a video reader as knows the time."""

    def __init__(self, times: np.ndarray) -> None:
        self.times = times


def draw(sampler: SampleFramePair, times: int = 300, **results) -> np.ndarray:
    """Pairs drawn from one video: (times * pairs_per_video, 2)."""
    samples = [sampler(dict(results))['frame_inds'].reshape(-1, 2) for _ in range(times)]
    return np.concatenate(samples)


# ----------------------------------------------------------------- SampleFramePair


@pytest.mark.parametrize('interval', [1, 3, 9])
def test_sample_frame_pair__interval_is_exact_and_every_start_is_drawn(interval):
    pairs = draw(SampleFramePair(interval), total_frames=10)
    assert (pairs[:, 1] - pairs[:, 0] == interval).all()
    assert set(pairs[:, 0]) == set(range(10 - interval))


def test_sample_frame_pair__range_includes_both_ends():
    pairs = draw(SampleFramePair((2, 4)), total_frames=20)
    assert set(pairs[:, 1] - pairs[:, 0]) == {2, 3, 4}


def test_sample_frame_pair__says_what_mmaction_says():
    results = SampleFramePair((1, 5), pairs_per_video=4)(dict(total_frames=50, start_index=1))
    pairs = results['frame_inds'].reshape(4, 2)
    assert results['clip_len'] == 2 and results['num_clips'] == 4
    assert (results['frame_interval'] == pairs[:, 1] - pairs[:, 0]).all()
    assert len(set(pairs[:, 0])) > 1, 'the pairs of one video must differ'
    assert (np.diff(pairs[:, 0]) >= 0).all(), 'sorted for the decoder'


def test_sample_frame_pair__start_index_shifts_the_indices():
    pairs = draw(SampleFramePair(1), total_frames=3, start_index=1)
    assert pairs.min() == 1 and pairs.max() == 3


@pytest.mark.parametrize('time', [dict(frame_interval=9), dict(frame_interval=9.5, unit='seconds')])
def test_sample_frame_pair__short_video_gives_its_largest_interval(time):
    pairs = draw(SampleFramePair(**time), times=20, total_frames=4, fps=1)
    assert (pairs == [0, 3]).all()


def test_sample_frame_pair__two_frames_are_enough():
    assert (draw(SampleFramePair(1), times=3, total_frames=2) == [0, 1]).all()


@pytest.mark.parametrize('total', [0, 1])
def test_sample_frame_pair__one_frame_is_no_pair(total):
    with pytest.raises(UnusableVideoError, match=f'needs 2 frames, the video has {total}'):
        SampleFramePair()(dict(total_frames=total))


def test_sample_frame_pair__pair_start_is_honoured():
    pairs = draw(SampleFramePair((1, 3)), total_frames=10, pair_start=7)
    assert set(pairs[:, 0]) == {7} and set(pairs[:, 1]) == {8, 9}
    pairs = draw(SampleFramePair(2, unit='seconds'), total_frames=10, pair_start=3, fps=1)
    assert (pairs == [3, 5]).all()


def test_sample_frame_pair__pair_start_without_successor_is_the_datas_fault():
    with pytest.raises(UnusableVideoError, match=r'pair_start must lie in \[0, 8\].*got 9'):
        SampleFramePair()(dict(total_frames=10, pair_start=9))


@pytest.mark.parametrize('rate', ['fps', 'avg_fps'])
def test_sample_frame_pair__seconds_of_a_constant_rate(rate):
    sampler = SampleFramePair(0.2, unit='seconds')
    pairs = draw(sampler, total_frames=30, **{rate: 25})
    assert (pairs[:, 1] - pairs[:, 0] == 5).all()
    assert set(pairs[:, 0]) == set(range(25))


def test_sample_frame_pair__seconds_of_a_variable_rate():
    # 20 frames at 50 per second, then 20 at 5 per second
    times = np.cumsum([0] + [0.02] * 20 + [0.2] * 19)
    sampler = SampleFramePair(0.335, unit='seconds')
    pairs = draw(sampler, total_frames=40, avg_fps=40 / times[-1], video_reader=Reader(times))
    assert set(pairs[:, 0]) == set(np.flatnonzero(times + 0.335 <= times[-1]))
    for first, second in np.unique(pairs, axis=0):
        distance = np.abs(times - (times[first] + 0.335))
        assert distance[second] == pytest.approx(distance[first + 1 :].min(), abs=1e-6)
    intervals = pairs[:, 1] - pairs[:, 0]
    assert intervals.max() == 17 and intervals[pairs[:, 0] >= 20].max() == 2


def test_sample_frame_pair__seconds_never_pair_a_frame_with_itself():
    sampler = SampleFramePair(0.01, unit='seconds')
    pairs = draw(sampler, total_frames=10, avg_fps=1, video_reader=Reader(np.arange(10.0)))
    assert (pairs[:, 1] - pairs[:, 0] == 1).all()


@pytest.mark.parametrize('times', [np.full(30, -3e17), np.r_[np.full(5, -3e17), np.arange(25.0)]])
def test_sample_frame_pair__senseless_timestamps_give_way_to_the_rate(times):
    sampler = SampleFramePair(0.4, unit='seconds')
    pairs = draw(sampler, total_frames=30, avg_fps=10.0, video_reader=Reader(times))
    assert (pairs[:, 1] - pairs[:, 0] == 4).all()


def test_sample_frame_pair__seconds_without_time_say_what_is_missing():
    with pytest.raises(ValueError, match='needs a video_reader, avg_fps or fps'):
        SampleFramePair(0.1, unit='seconds')(dict(total_frames=5))
    with pytest.raises(UnusableVideoError, match='frame rate must be above 0'):
        SampleFramePair(0.1, unit='seconds')(dict(total_frames=5, avg_fps=0.0))


def test_sample_frame_pair__seconds_of_a_real_file_with_variable_rate(data_dir):
    file = data_dir / 'videos' / 'mmaction_skeleton.mp4'
    results = OpenVideo()(dict(filename=str(file)))
    times = results['video_reader'].times
    assert np.diff(times).max() > 2 * np.diff(times).min()
    pairs = draw(SampleFramePair(0.5, unit='seconds'), **results)
    gaps = times[pairs[:, 1]] - times[pairs[:, 0]]
    assert np.abs(gaps - 0.5).max() <= np.diff(times).max() / 2 + 1e-3


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(unit='minutes'), "unit must be 'frames' or 'seconds', got 'minutes'"),
        (dict(frame_interval=0), 'frames at least 1.*got 0'),
        (dict(frame_interval=1.5), 'frames at least 1.*got 1.5'),
        (dict(frame_interval=(3, 2)), r'got \(3, 2\)'),
        (dict(frame_interval=(1, 2, 3)), r'got \(1, 2, 3\)'),
        (dict(frame_interval='far'), "got 'far'"),
        (dict(frame_interval=0.0, unit='seconds'), 'seconds above 0.*got 0.0'),
        (dict(pairs_per_video=0), 'pairs_per_video must be .* at least 1, got 0'),
    ],
)
def test_sample_frame_pair__bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleFramePair(**arguments)


# --------------------------------------------------------------------- SampleClips


def draw_clips(sampler: SampleClips, times: int = 300, **results) -> np.ndarray:
    """Clips drawn from one video: (times, num_clips, clip_len)."""
    samples = [sampler(dict(results))['frame_inds'] for _ in range(times)]
    return np.stack(samples).reshape(times, -1, sampler.clip_len)


def test_sample_clips__every_start_is_drawn_and_the_interval_is_exact():
    clips = draw_clips(SampleClips(4, 3), total_frames=20)
    assert clips.shape[1:] == (1, 4)
    assert (np.diff(clips) == 3).all()
    assert set(clips[:, 0, 0]) == set(range(20 - 4 * 3 + 1))


@pytest.mark.parametrize('interval', [1, 2, 4, 5])
def test_sample_clips__repeat_the_last_that_lies_before_the_end(interval):
    for total in range(1, 100):
        inds = SampleClips(16, interval)(dict(total_frames=total))['frame_inds']
        expected = [inds[0]]
        while len(expected) < 16:
            following = expected[-1] + interval
            expected.append(following if following < total - 1 else expected[-1])
        assert inds.tolist() == expected and inds[-1] < total
        assert inds[0] == 0 or total > 16 * interval


def test_sample_clips__say_what_mmaction_says():
    results = SampleClips(max_shift=2)(dict(total_frames=300, start_index=0))
    assert results['frame_inds'].shape == (32,) and results['frame_inds'].dtype.kind == 'i'
    assert (results['clip_len'], results['num_clips'], results['frame_interval']) == (16, 2, 4)
    assert SampleClips()(dict(total_frames=300))['num_clips'] == 1


def test_sample_clips__start_index_shifts_the_indices():
    clips = draw_clips(SampleClips(2, 2), total_frames=5, start_index=1)
    assert set(map(tuple, clips[:, 0])) == {(1, 3), (2, 4)}


def test_sample_clips__same_seed_same_clips():
    drawn = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        drawn.append(draw_clips(SampleClips(max_shift=8), times=20, total_frames=300))
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_sample_clips__shift_is_uniform_and_both_clips_are_whole():
    clips = draw_clips(SampleClips(4, 3, max_shift=4), times=3000, total_frames=20)
    shifts = (clips[:, 1] - clips[:, 0])[:, 0]
    assert (clips[:, 1] - clips[:, 0] == shifts[:, None]).all()
    assert (np.diff(clips) == 3).all()
    counts = np.bincount(shifts)
    assert len(counts) == 5 and np.abs(counts - 600).max() < 5 * np.sqrt(600)
    for shift in range(5):
        # 8 is the last start of a whole clip
        assert set(clips[shifts == shift, 1, 0]) == set(range(shift, 9))


def test_sample_clips__shift_is_at_most_what_the_video_allows():
    clips = draw_clips(SampleClips(4, 3, max_shift=100), total_frames=14)
    assert set(clips[:, 1, 0] - clips[:, 0, 0]) == {0, 1, 2}
    assert (np.diff(clips) == 3).all() and clips[:, 1, 0].max() == 2


@pytest.mark.parametrize('total', [1, 7, 12])
def test_sample_clips__video_without_room_gives_the_same_clip_twice(total):
    clips = draw_clips(SampleClips(4, 3, max_shift=5), times=20, total_frames=total)
    assert (clips[:, 0] == clips[:, 1]).all() and (clips[:, 0, 0] == 0).all()


def test_sample_clips__no_frame_is_no_clip():
    with pytest.raises(UnusableVideoError, match='a clip needs a frame, the video has 0'):
        SampleClips()(dict(total_frames=0))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(clip_len=0), 'clip_len must be .* at least 1, got 0'),
        (dict(frame_interval=0), 'frame_interval must be .* at least 1, got 0'),
        (dict(frame_interval=1.5), 'frame_interval .* got 1.5'),
        (dict(max_shift=-1), 'max_shift must be .* at least 0, got -1'),
        (dict(max_shift=2.0), 'max_shift .* got 2.0'),
    ],
)
def test_sample_clips__bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleClips(**arguments)
