import math

import pytest
import torch

from videomac_mm.models.label_propagation.context import ContextFrames, Window
from videomac_mm.models.label_propagation.dense import propagate_densely

GRID = 13, 27  # several tiles, none full
DINO = dict(window=Window(3))
CRW = dict(window=Window(3.5, 'disc'), window_on_first=False, pad_with_first=True)
FORMS = {
    'dino': (DINO, dict(topk=5, temperature=0.1, keep_ties=True)),
    'crw': (CRW, dict(topk=10, temperature=0.05)),
    'global': (dict(window=None), dict(topk=7, temperature=0.07, keep_ties=True)),
    'disc on all': (dict(window=Window(2.0, 'disc')), dict(topk=3, temperature=0.1)),
    'window beyond the image': (dict(window=Window(40)), dict(topk=5, temperature=0.1)),
    'one cell': (dict(window=Window(0)), dict(topk=1, temperature=1.0)),
    'more than the window has': (dict(window=Window(1)), dict(topk=50, temperature=0.1)),
}


def video(num_frames: int, channels: int = 8, labels: int = 3, dtype=torch.float64):
    features = torch.randn(num_frames, channels, *GRID, dtype=dtype)
    soft = torch.rand(num_frames, labels, *GRID, dtype=dtype)
    return features, soft / soft.sum(1, keepdim=True)


def allowed(window: Window | None, num: int, window_on_first: bool) -> torch.Tensor:
    y, x = torch.meshgrid(*(torch.arange(size) for size in GRID), indexing='ij')
    y, x = y.flatten(), x.flatten()
    inside = torch.ones(num, len(y), len(y), dtype=torch.bool)
    if window is not None:
        inside[0 if window_on_first else 1 :] = window.contains(y[:, None] - y, x[:, None] - x)
    return inside


@pytest.mark.parametrize('name', FORMS)
@pytest.mark.parametrize('num_later', [0, 1, 3, 5])
def test_propagate__equals_all_pairs(name, num_later):
    context, mixing = FORMS[name]
    features, labels = video(num_later + 2)
    frames = ContextFrames(features[0], labels[0], num_frames=3, **context)
    for number in range(1, num_later + 1):
        frames.push(features[number], labels[number])

    got = frames.propagate(features[-1], **mixing)

    later = list(range(1, num_later + 1))[-3:]
    copies = [0] * (3 - len(later)) if context.get('pad_with_first') else []
    seen = [0, *copies, *later]
    mask = allowed(context['window'], len(seen), context.get('window_on_first', True))
    wanted = propagate_densely(features[-1], features[seen], labels[seen], allowed=mask, **mixing)
    torch.testing.assert_close(got, wanted)


def test_propagate__a_shift_is_followed():
    features, _ = video(1)
    labels = torch.zeros(2, *GRID, dtype=torch.float64)
    labels[1, 4:8, 5:9] = 1
    labels[0] = 1 - labels[1]
    frames = ContextFrames(features[0], labels, window=Window(3))
    moved = features[0].roll((2, 1), (1, 2))
    got = frames.propagate(moved, topk=1, temperature=0.1)
    torch.testing.assert_close(got[:, 2:, 1:], labels.roll((2, 1), (1, 2))[:, 2:, 1:])


@pytest.mark.parametrize('window', [None, Window(2)])
def test_propagate__ties(window):
    """Cells of equal features: all of them count, or as many as there are top cells."""
    features = torch.ones(4, *GRID, dtype=torch.float64)
    labels = torch.rand(2, *GRID, dtype=torch.float64)
    frames = ContextFrames(features, labels, window=window)
    frames.push(features, labels)

    kept = frames.propagate(features, topk=3, temperature=0.1, keep_ties=True)

    if window is None:
        mean = labels.mean((1, 2), keepdim=True).expand_as(labels)
    else:
        side = dict(kernel_size=5, stride=1, padding=2, count_include_pad=False)
        mean = torch.nn.functional.avg_pool2d(labels, **side)
    torch.testing.assert_close(kept, mean)
    strict = frames.propagate(features, topk=3, temperature=0.1, keep_ties=False)
    assert (strict - mean).abs().max() > 0.01


def test_propagate__labels_stay_shares():
    features, labels = video(4, dtype=torch.float32)
    frames = ContextFrames(features[0], labels[0], num_frames=2, window=Window(2))
    for feature in features[1:]:
        soft = frames.propagate(feature, topk=5, temperature=0.1, keep_ties=True)
        frames.push(feature, soft)
        torch.testing.assert_close(soft.sum(0), torch.ones(GRID))
        assert soft.min() >= 0


def test_propagate__only_direction_counts():
    features, labels = video(2)
    frames = ContextFrames(features[0], labels[0], window=Window(2))
    wanted = frames.propagate(features[1], topk=4, temperature=0.1)
    scaled = ContextFrames(5 * features[0], labels[0], window=Window(2))
    torch.testing.assert_close(scaled.propagate(0.1 * features[1], 4, 0.1), wanted)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_propagate__half_precision(dtype):
    features, labels = video(3, channels=32, dtype=torch.float32)
    results = []
    for kind in (torch.float32, dtype):
        half = features.to(kind)
        frames = ContextFrames(half[0], labels[0], window=Window(3))
        frames.push(half[1], labels[1])
        results.append(frames.propagate(half[2], topk=5, temperature=0.1))
    assert results[1].dtype == torch.float32
    torch.testing.assert_close(*results, atol=0.1, rtol=0)


def test_context__holds_no_more_than_its_queue():
    features, labels = video(2)
    frames = ContextFrames(features[0], labels[0], num_frames=2, window=Window(2))

    def numbers() -> int:
        return sum(x.numel() for x in vars(frames).values() if isinstance(x, torch.Tensor))

    before = numbers()
    for _ in range(5):
        frames.push(features[1], labels[1])
    assert numbers() == before


def test_window__shapes():
    offset = torch.arange(-3, 4)
    square = Window(2).contains(offset[:, None], offset)
    assert square.sum() == 25 and Window(2).reach == 2
    disc = Window(3, 'disc').contains(offset[:, None], offset)  # open: radius 3 is outside
    assert disc.sum() == 25 and not disc[0, 3] and Window(3, 'disc').reach == 2
    far = torch.arange(-12, 13)
    assert Window(12, 'disc').contains(far[:, None], far).sum() == 437


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(num_frames=0), 'num_frames must be at least 1, got 0'),
        (dict(labels=torch.zeros(2, 4, 4)), r'labels of shape \(2, 4, 4\) do not fit'),
    ],
)
def test_context__errors(change, message):
    features, labels = video(1)
    with pytest.raises(ValueError, match=message):
        ContextFrames(**{**dict(features=features[0], labels=labels[0]), **change})


def test_context__other_size_later():
    features, labels = video(1)
    frames = ContextFrames(features[0], labels[0])
    with pytest.raises(ValueError, match='do not fit those of the first frame'):
        frames.propagate(features[0, :, 1:], topk=1, temperature=1.0)
    with pytest.raises(ValueError, match='do not fit those of the first frame'):
        frames.push(features[0, :, 1:], labels[0])


@pytest.mark.parametrize('radius, shape', [(-1, 'square'), (0, 'disc'), (2, 'diamond')])
def test_window__errors(radius, shape):
    with pytest.raises(ValueError, match=str(radius) if shape != 'diamond' else shape):
        Window(radius, shape)


def test_dense__closed_form():
    """One context, two cells: the softmax of two cosines."""
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)  # (2, 1, 2)
    labels = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    got = propagate_densely(features, features[None], labels, topk=2, temperature=0.5)
    share = math.exp(2) / (math.exp(2) + 1)
    torch.testing.assert_close(got[0, 0], torch.tensor([share, 1 - share], dtype=torch.float64))


@pytest.mark.parametrize('with_ties', [False, True])
def test_propagate__asks_the_device_once_a_frame(monkeypatch, with_ties):
    torch.manual_seed(0)
    features, labels = torch.randn(4, 25, 30), torch.rand(2, 25, 30)
    frames = ContextFrames(features, labels, 2, Window(3))
    frames.push(features, labels)
    asked = []
    for name in ('tolist', 'item', '__bool__', '__int__', '__float__', '__index__'):
        original = getattr(torch.Tensor, name)

        def record(self, *args, name=name, original=original):
            asked.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, record)
    query = torch.ones(4, 25, 30) if with_ties else torch.randn(4, 25, 30)
    frames.propagate(query, 5, 0.1, keep_ties=True)
    assert asked == ['tolist']  # for all of its 9 tiles
    frames.propagate(query, 5, 0.1, keep_ties=False)
    assert asked == ['tolist']
