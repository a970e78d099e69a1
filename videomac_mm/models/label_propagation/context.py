"""Labels travel from frame to frame along the similarity of features: pure tensor functions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows and columns of the tiles in which queries are worked.
_TILE = 10, 12
# The best of many scores are sought in the chunks with the largest maxima.
_CHUNK = 32
# Cells beyond the `topk` that are looked at for ties.
_SPARE = 4


@dataclass(frozen=True)
class Window:
    """The cells around its own place that a cell may look at in another frame.

    Args:
        radius: in cells, at least 0.
        shape: 'square': ``|dy| <= radius`` and ``|dx| <= radius`` (DINO), or 'disc':
            ``sqrt(dy² + dx²) < radius`` (CRW).

    Raises:
        ValueError: for another shape, or a radius that leaves no cell.
    """

    radius: float
    shape: str = 'square'

    def __post_init__(self) -> None:
        if self.shape not in ('square', 'disc'):
            raise ValueError(f"window shape must be 'square' or 'disc', got {self.shape!r}")
        if self.reach < 0:
            raise ValueError(f'a {self.shape} of radius {self.radius} contains no cell')

    @property
    def reach(self) -> int:
        """Cells between the centre and the border."""
        return math.floor(self.radius) if self.shape == 'square' else math.ceil(self.radius) - 1

    def contains(self, dy: Tensor, dx: Tensor) -> Tensor:
        """Whether a cell at the distance (dy, dx) is inside."""
        if self.shape == 'square':
            return torch.maximum(dy.abs(), dx.abs()) <= self.radius
        return dy.square() + dx.square() < self.radius**2


class ContextFrames:
    """The features and soft labels that the next frame takes its labels from.

    The first frame stays, and the last ``num_frames`` of the later ones.

    Args:
        features (C, h, w): of the first frame, not normalised.
        labels (L, h, w): of the first frame, hard or soft.
        num_frames: later frames to keep, at least 1.
        window: what a cell may look at; everything if None.
        window_on_first: whether that holds for the first frame too, as in DINO, or only for
            later ones, as in CRW. Defaults to True.
        pad_with_first: let copies of the first frame stand for later frames that are still
            to come, as CRW does. Defaults to False.

    Raises:
        ValueError: if sizes do not fit each other, or ``num_frames`` is less than 1.

    Source: DINO (arXiv 2104.14294) and CRW (arXiv 2006.14613), their evaluation code.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        num_frames: int = 7,
        window: Window | None = None,
        window_on_first: bool = True,
        pad_with_first: bool = False,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f'num_frames must be at least 1, got {num_frames}')
        channels, height, width = self.shape = tuple(features.shape)
        self.window = window
        # Slot 0 is the first frame's. The window is on those from `_windowed` on.
        self._windowed = 0 if window_on_first else 1
        self._num_later = 0
        self._num_frames = num_frames
        num_slots = 1 + num_frames
        self._labels = labels.new_zeros(num_slots * height * width, len(labels))

        # Tiles as equal as can be: little padding.
        rows, columns = (-(-size // -(-size // tile)) for size, tile in zip((height, width), _TILE))
        self._tile = rows, columns
        self._num_strips = -(-width // columns)
        self._strips = self._cells = None
        if window is not None:
            # Overlapping strips of columns: the keys of a tile are one piece of memory.
            self._strips = features.new_zeros(
                num_slots - self._windowed,
                self._num_strips,
                height,
                columns + 2 * window.reach,
                channels,
            )
        if window is None or not window_on_first:
            num_free = num_slots if window is None else 1
            self._cells = features.new_zeros(num_free, height * width, channels)

        self._put(0, features, labels)
        for _ in range(num_frames if pad_with_first else 0):
            self.push(features, labels)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Add a later frame, in place of the oldest one if there are enough.

        Args:
            features (C, h, w), labels (L, h, w): as those of the first frame.

        Raises:
            ValueError: if their sizes are not those of the first frame.
        """
        self._put(1 + self._num_later % self._num_frames, features, labels)
        self._num_later += 1

    @torch.no_grad()
    def propagate(
        self, features: Tensor, topk: int, temperature: float, keep_ties: bool = False
    ) -> Tensor:
        """Give a new frame its labels: means of the most similar cells' labels.

        The weights are the softmax of ``cosine / temperature`` over the ``topk`` best cells of
        all frames together.

        Args:
            features (C, h, w): of the new frame, not normalised.
            topk: cells that a cell takes its label from.
            temperature: positive.
            keep_ties: take every cell that is as good as the last of the ``topk``, as in
                DINO; if False, which one is taken is left open, as in CRW.

        Returns:
            (L, h, w) soft labels, not yet pushed.

        Raises:
            ValueError: if the size of the features is not that of the first frame.
        """
        self._check(features)
        _, height, width = self.shape
        rows, columns = self._tile
        tiles = [
            (slice(top, top + rows), slice(left, left + columns))
            for top in range(0, height, rows)
            for left in range(0, width, columns)
        ]
        queries = _normalise(features)  # (h, w, C)
        out = self._labels.new_empty(height, width, self._labels.shape[1])
        # Most ties are of a few cells. Tiles with longer ones are worked once more.
        spare = _SPARE if keep_ties else 0
        unfinished = []
        for tile in tiles:
            scored = self._score(queries[tile], tile)
            values, places = _best_of_all(scored, topk + spare)
            if values.shape[1] > topk:
                last = values[:, topk - 1 : topk]
                values = values.masked_fill(values < last, -math.inf)
                more_ties = (values[:, -1:] == last) & last.isfinite()
                num_groups = torch.stack([part.num_groups(last) for part in scored])
                unfinished.append(num_groups * more_ties.any())
            out[tile] = self._mix(values, places, temperature, out[tile])
        if not unfinished:
            return out.permute(2, 0, 1)
        # All tiles are asked at once, because a question to a GPU waits for all its work.
        for tile, numbers in zip(tiles, torch.stack(unfinished).tolist()):
            if any(numbers):
                scored = self._score(queries[tile], tile)
                last = _best_of_all(scored, topk)[0][:, -1:]
                values, places = _join(
                    part.at_least(last, number) for part, number in zip(scored, numbers)
                )
                out[tile] = self._mix(values, places, temperature, out[tile])
        return out.permute(2, 0, 1)

    def _score(self, query: Tensor, tile: tuple[slice, slice]) -> list['_Scores']:
        """How similar the queries of a tile (rows, columns, C) are to the cells of all frames."""
        scored = []
        if self._strips is not None and self._num_used > self._windowed:
            scored.append(_WindowScores(self, query, tile[0].start, tile[1].start))
        if self._cells is not None:
            scored.append(_FrameScores(self, query))
        return scored

    def _mix(self, values: Tensor, places: Tensor, temperature: float, out: Tensor) -> Tensor:
        """The mean of the labels at ``places`` (q, n) by ``values`` (q, n), shaped as ``out``."""
        weights = (values.to(self._labels.dtype) / temperature).softmax(-1)
        return torch.bmm(weights[:, None], self._labels[places]).view_as(out)  # (q, 1, L)

    @property
    def _num_used(self) -> int:
        return 1 + min(self._num_later, self._num_frames)

    def _check(self, features: Tensor) -> None:
        if features.shape != self.shape:
            raise ValueError(
                f'features of shape {tuple(features.shape)} do not fit those of the first '
                f'frame, {self.shape}'
            )

    @torch.no_grad()
    def _put(self, slot: int, features: Tensor, labels: Tensor) -> None:
        self._check(features)
        _, height, width = self.shape
        wanted = self._labels.shape[1], height, width
        if labels.shape != wanted:
            raise ValueError(f'labels of shape {tuple(labels.shape)} do not fit: expected {wanted}')
        cells = height * width
        self._labels[slot * cells : (slot + 1) * cells] = labels.flatten(1).T
        keys = _normalise(features)
        if self._cells is not None and slot < len(self._cells):
            self._cells[slot] = keys.flatten(0, 1)
        if self._strips is not None and slot >= self._windowed:
            reach = self.window.reach
            strips = self._strips[slot - self._windowed]
            padded = F.pad(keys, (0, 0, reach, strips.shape[2]))
            for number, strip in enumerate(strips):
                left = number * self._tile[1]
                strip.copy_(padded[:, left : left + strip.shape[1]])


class _Scores:
    """How similar the queries of a tile, q of them, are to cells that labels may come from.

    The scores of a query are kept in groups of one size, with the maximum of each. The ``k``
    best scores lie in the ``k`` groups with the largest maxima, so most are never looked at.
    """

    maxima: Tensor  # (q, number of groups)

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` largest scores of each query (q, k), and their places."""
        groups, scores = self._largest(k)
        values, index = scores.topk(min(k, scores.shape[1]))
        return values, self._places(groups, index)

    def at_least(self, threshold: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        """The scores that reach the query's threshold (q, 1), and -inf for others; places.

        Args:
            num_groups: in how many groups at most a query has such scores.
        """
        groups, scores = self._largest(num_groups)
        index = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        return scores.masked_fill(scores < threshold, -math.inf), self._places(groups, index)

    def num_groups(self, threshold: Tensor) -> Tensor:
        """In how many groups at most a query has scores that reach its threshold (q, 1)."""
        reached = (self.maxima >= threshold) & (self.maxima > -math.inf)
        return reached.sum(1).amax()

    def _largest(self, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` groups of each query with the largest maxima (q, k), and their scores."""
        groups = self.maxima.topk(min(k, self.maxima.shape[1])).indices
        return groups, self._scores(groups)

    def _scores(self, groups: Tensor) -> Tensor:
        """The scores in some groups (q, k), one group after another: (q, k * size)."""
        raise NotImplementedError

    def _places(self, groups: Tensor, index: Tensor) -> Tensor:
        """Which labels belong to the scores of these groups, at some places ``index`` (q, n)."""
        raise NotImplementedError


class _FrameScores(_Scores):
    """Of all cells of some frames."""

    def __init__(self, frames: ContextFrames, query: Tensor) -> None:
        """``query``: (rows, columns, C)."""
        keys = frames._cells[: frames._num_used].flatten(0, 1)
        scores = query.flatten(0, 1) @ keys.T  # (q, slots * h * w)
        self.num = scores.shape[1]
        self.chunks = F.pad(scores, (0, -self.num % _CHUNK), value=-math.inf).unflatten(
            1, (-1, _CHUNK)
        )
        self.maxima = self.chunks.amax(-1)

    def _scores(self, groups: Tensor) -> Tensor:
        return torch.take_along_dim(self.chunks, groups[..., None], 1).flatten(1)

    def _places(self, groups: Tensor, index: Tensor) -> Tensor:
        places = groups.gather(1, index // _CHUNK) * _CHUNK + index % _CHUNK
        return places.clamp(max=self.num - 1)  # beyond: what was padded


class _WindowScores(_Scores):
    """Of the cells in the window of each query; a group is a column of a window."""

    def __init__(self, frames: ContextFrames, query: Tensor, top: int, left: int) -> None:
        """``query``: (rows, columns, C) from row ``top`` and column ``left`` on."""
        _, self.height, self.width = frames.shape
        self.first = frames._windowed
        self.top, self.left = top, left
        self.rows, self.columns = query.shape[:2]
        self.reach = reach = frames.window.reach
        num = frames._num_used - frames._windowed
        # Rows of the image that the tile's windows reach: from there on, so many.
        start, stop = max(top - reach, 0), min(top + self.rows + reach, self.height)
        strips = frames._strips[:num, left // frames._tile[1], start:stop]
        query, num_columns = query.flatten(0, 1), strips.shape[2]
        keys = strips.flatten(1, 2).transpose(1, 2)  # (slots, C, rows * columns)
        # Scores of (slot, query, row, column); -inf outside of the image.
        size = num, len(query), self.rows + 2 * reach, num_columns
        self.scores = scores = query.new_empty(size)
        first, last = start - (top - reach), stop - (top - reach)
        reached = scores.flatten(2)[..., first * num_columns : last * num_columns]
        torch.bmm(query.expand(num, -1, -1), keys, out=reached)
        outside = (
            scores[:, :, :first],
            scores[:, :, last:],
            scores[..., : max(reach - left, 0)],
            scores[..., max(self.width + reach - left, 0) :],
        )
        for part in outside:
            if part.numel():
                part.fill_(-math.inf)
        number = torch.arange(len(query), device=query.device)[:, None]
        self.y, self.x = number // self.columns, number % self.columns  # (q, 1)
        # The keys of a query's window lie around it: a view of (slots, y, x, dy, dx).
        self.side = 2 * reach + 1
        slot, each, row, _ = scores.stride()
        self.windows = scores.as_strided(
            (num, self.rows, self.columns, self.side, self.side),
            (slot, self.columns * each + row, each + 1, row, 1),
        )
        if frames.window.shape == 'disc':
            offset = torch.arange(-reach, reach + 1, device=scores.device)
            inside = frames.window.contains(offset[:, None], offset)
            self.windows.masked_fill_(~inside, -math.inf)

        self.maxima = _maxima(self.windows).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)

    def _scores(self, groups: Tensor) -> Tensor:
        slot, dx = groups // self.side, groups % self.side
        strides = self.windows.stride()
        offset = slot * strides[0] + self.y * strides[1] + self.x * strides[2] + dx
        dy = torch.arange(self.side, device=groups.device)
        offset = offset[..., None] + dy * strides[3]
        return self.scores.flatten()[offset.flatten(1)]

    def _places(self, groups: Tensor, index: Tensor) -> Tensor:
        column = groups.gather(1, index // self.side)
        slot, dx, dy = column // self.side, column % self.side, index % self.side
        # What lies outside of the image has no weight, but must have a place.
        y = (self.top - self.reach + self.y + dy).clamp(0, self.height - 1)
        x = (self.left - self.reach + self.x + dx).clamp(0, self.width - 1)
        return ((self.first + slot) * self.height + y) * self.width + x


def _maxima(windows: Tensor) -> Tensor:
    """(..., D, E) -> (..., E): as ``amax(-2)``, in half the time on CPUs."""
    while windows.shape[-2] > 1:
        num, half = windows.shape[-2], windows.shape[-2] // 2
        odd = windows[..., -1, :]
        windows = torch.maximum(windows[..., :half, :], windows[..., half : 2 * half, :])
        if num % 2:
            torch.maximum(windows[..., 0, :], odd, out=windows[..., 0, :])
    return windows[..., 0, :]


def _best_of_all(scored: list[_Scores], k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest scores of each query over all frames (q, k), and their places."""
    values, places = _join(part.best(k) for part in scored)
    if len(scored) > 1:
        values, index = values.topk(min(k, values.shape[1]))
        places = places.gather(1, index)
    return values, places


def _join(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, places = zip(*parts)
    return torch.cat(values, 1), torch.cat(places, 1)


def _normalise(features: Tensor) -> Tensor:
    """(C, h, w) -> (h, w, C), of unit length."""
    return F.normalize(features.permute(1, 2, 0), dim=-1).contiguous()
