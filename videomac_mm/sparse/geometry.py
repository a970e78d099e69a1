"""A mask as geometry: counts, indices and neighbours. Every layer below asks this one object."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class VisiblePatches:
    """A mask, turned into what sparse layers and token networks need to know.

    The maps of a masked batch hold K visible patches per image. Packed, they are tiles
    ``(B*K, C, p, p)`` in channels-last memory, ordered by image and row by row inside it,
    at every stride of the network: only the side p of a tile changes. All sites of a
    visible patch are visible, all others do not exist. Of clips, the patches are tokens.

    Args:
        mask (B, h, w) or (B, t, h, w): bool on the patch grid, True = hidden. Every image must
            hide the same number of patches, and show at least one. The check reads numbers
            from the device; masks whose counts are known take `with_count` instead.

    Attributes:
        mask: as given.
        batch_size: B.
        grid: (h, w) or (t, h, w).
        num_patches, num_visible: of one image or clip: N and K.
        visible (B*K,), hidden (B*(N-K),): int64 places in the B*N patches of the batch, ascending.

    Raises:
        TypeError: if ``mask`` is not bool.
        ValueError: if it has another number of axes, shows nothing, or shows unequal counts.

    Source: own.
    """

    # The number of visible patches depends on data, so graph compilers are kept out. All that
    # follows has shapes that they know.
    @torch.compiler.disable
    def __init__(self, mask: Tensor) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f'mask must be bool (True = hidden), a tensor, got {found}')
        if mask.ndim not in (3, 4):
            raise ValueError(
                f'mask must have shape (B, h, w) or (B, t, h, w), got {tuple(mask.shape)}'
            )
        self._describe(mask, _equal_count(mask))

    @classmethod
    def of(cls, mask: 'Tensor | VisiblePatches') -> 'VisiblePatches':
        """The geometry of a mask. A geometry is returned as it is, with its tables."""
        return mask if isinstance(mask, cls) else cls(mask)

    @classmethod
    def with_count(cls, mask: Tensor, num_visible: int) -> 'VisiblePatches':
        """The geometry of a mask that is known to show ``num_visible`` patches of every image.

        Nothing is checked, so that no number has to come from the device.
        """
        patches = cls.__new__(cls)
        patches._describe(mask, num_visible)
        return patches

    def _describe(self, mask: Tensor, num_visible: int) -> None:
        self.mask = mask
        self.batch_size, *grid = mask.shape
        self.grid: tuple[int, ...] = tuple(grid)
        self.num_patches = math.prod(grid)
        self.num_visible = num_visible
        order = mask.flatten(1).byte().argsort(dim=1, stable=True)  # visible patches first
        first = torch.arange(self.batch_size, device=mask.device)[:, None] * self.num_patches
        order = order + first
        self.visible = order[:, :num_visible].flatten()
        self.hidden = order[:, num_visible:].flatten()
        self._tables = {}

    @property
    def num_tiles(self) -> int:
        """B*K."""
        return self.batch_size * self.num_visible

    def everything(self) -> 'VisiblePatches':
        """The geometry of the same batch with nothing hidden."""
        if 'everything' not in self._tables:
            self._tables['everything'] = self.with_count(
                torch.zeros_like(self.mask), self.num_patches
            )
        return self._tables['everything']

    def frames(self) -> 'VisiblePatches':
        """The geometry of a clip's time slots as images: B*t of them on the grid (h, w).

        Raises:
            ValueError: if time slots show unequal numbers of patches.
        """
        if 'frames' not in self._tables:
            self._tables['frames'] = VisiblePatches(self.mask.flatten(0, 1))
        return self._tables['frames']

    def with_even_frames(self) -> 'VisiblePatches':
        """This geometry, known to show as many patches in each time slot; not checked."""
        count = self.num_visible // self.grid[0]
        self._tables['frames'] = self.with_count(self.mask.flatten(0, 1), count)
        return self

    def pack(self, maps: Tensor, stride: int = 1) -> Tensor:
        """Take the visible tiles out of dense maps.

        Args:
            maps (B, C, H, W): H, W whole and equal multiples of the patch grid.
            stride: of the network that will run on the tiles. Defaults to 1.

        Returns:
            (B*K, C, p, p) in channels-last memory.

        Raises:
            ValueError: if the maps do not fit the grid of the mask, or the tiles the stride.
        """
        side = self._side_of(maps)
        if side % stride:
            raise ValueError(
                f'mask patches of {side} pixels are no whole multiple of the stride of {stride} '
                'of the network'
            )
        return maps_of(rows_of(maps).index_select(0, self._sites(side)), side)

    def unpack(self, tiles: Tensor, fill: float = 0.0) -> Tensor:
        """Put tiles back on dense maps.

        Args:
            tiles (B*K, C, p, p): as `pack` returns them.
            fill: the value of hidden sites. Defaults to 0.

        Returns:
            (B, C, h*p, w*p) in channels-last memory.
        """
        side, channels = tiles.shape[-1], tiles.shape[1]
        height, width = self.grid[0] * side, self.grid[1] * side
        maps = tiles.new_full((self.batch_size * height * width, channels), fill)
        maps.index_copy_(0, self._sites(side), rows_of(tiles))
        return maps.view(self.batch_size, height, width, channels).permute(0, 3, 1, 2)

    def neighbours(self, reach: int = 1) -> Tensor:
        """Which tiles lie around every tile, itself in the middle.

        What windows of convs see is derived from this table, see `window_rows`.

        Args:
            reach: how many tiles to look at in each direction. Defaults to 1.

        Returns:
            (B*K, (2*reach + 1)**2) int32 indices of tiles, row by row; -1 where a patch is
            hidden or outside of the image.
        """
        key = 'neighbours', reach
        if key not in self._tables:
            image, row, column = (axis[:, None, None] for axis in self._places())
            number = torch.arange(self.num_tiles, device=image.device)
            tiles = number.new_full((self.mask.numel(),), -1).index_copy(0, self.visible, number)
            tiles = F.pad(tiles.view(self.mask.shape), (reach,) * 4, value=-1)
            across = torch.arange(2 * reach + 1, device=image.device)
            table = tiles[image, row + across[:, None], column + across]
            self._tables[key] = table.flatten(1).int()
        return self._tables[key]

    def neighbours_within(self, sites: int, side: int) -> Tensor:
        """`neighbours` as far as a number of sites reaches over tiles of a side, one at least."""
        return self.neighbours(max(1, -(-sites // side)))

    def per_image(self, tiles: Tensor) -> Tensor:
        """View channels-last tiles ``(B*K, p, p, C)`` as the sites of their images.

        Returns:
            (B, K*p*p, C)
        """
        return tiles.reshape(self.batch_size, -1, tiles.shape[-1])

    def _side_of(self, maps: Tensor) -> int:
        size = tuple(maps.shape[-2:])
        side = size[0] // self.grid[0]
        fits = len(maps) == self.batch_size and len(self.grid) == 2
        if not fits or size != (side * self.grid[0], side * self.grid[1]):
            raise ValueError(
                f'maps of shape {tuple(maps.shape)} do not fit a mask of shape '
                f'{(self.batch_size, *self.grid)}: batch sizes must agree and height and '
                'width be the same multiple of the patch grid'
            )
        return side

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column of the visible patches: each (B*K,)."""
        height, width = self.grid
        place = self.visible
        return place // (height * width), place // width % height, place % width

    def _sites(self, side: int) -> Tensor:
        """The place of each packed row on the maps: (B*K*p*p,)."""
        if side not in self._tables:
            image, row, column = (axis[:, None, None] for axis in self._places())
            inside = torch.arange(side, device=image.device)
            y, x = row * side + inside[:, None], column * side + inside
            height, width = self.grid[0] * side, self.grid[1] * side
            self._tables[side] = ((image * height + y) * width + x).flatten()
        return self._tables[side]


def _equal_count(mask: Tensor) -> int:
    """How many patches a mask (B, ...) shows of every image; an error if that is not one number."""
    counts = (~mask).flatten(1).sum(1)
    fewest, most = torch.stack([counts.min(), counts.max()]).tolist()
    if fewest != most:
        raise ValueError(f'every image must show the same number of patches, got {counts.tolist()}')
    if fewest == 0:
        raise ValueError(
            f'mask of shape {tuple(mask.shape)} hides every patch; at least one per '
            'image must be visible'
        )
    return fewest


def window_rows(neighbours: Tensor, side: int, kernel: int, stride: int, before: int) -> Tensor:
    """Find which site each place of each window of a conv reads.

    Args:
        neighbours (N, (2*reach + 1)**2): of `VisiblePatches.neighbours`; its reach covers the
            windows.
        side: p, of the N tiles.
        kernel: side of a window in sites.
        stride: distance of windows in sites; divides p.
        before: sites by which the first window of a tile starts above and left of it.

    Returns:
        (N * (p/stride)**2, kernel**2) int64: rows of the tiles as `rows_of` orders them; -1 where
        a site is hidden or outside of the image.
    """
    reach = math.isqrt(neighbours.shape[1]) // 2
    start = torch.arange(0, side, stride, device=neighbours.device) - before
    site = start[:, None] + torch.arange(kernel, device=neighbours.device)  # (n, kernel)
    tile, inside = site.div(side, rounding_mode='floor') + reach, site % side
    tile = tile[:, None, :, None] * (2 * reach + 1) + tile[None, :, None, :]
    inside = inside[:, None, :, None] * side + inside[None, :, None, :]  # (n, n, kernel, kernel)
    near = neighbours.index_select(1, tile.flatten()).long()
    rows = near * side**2 + inside.flatten()
    return rows.where(near >= 0, -1).view(-1, kernel**2)


def halo_places(neighbours: Tensor, side: int, before: int, after: int) -> Tensor:
    """Find where each site lies in the halos of the tiles around it: `window_rows`, reversed.

    Args:
        neighbours, side: as `window_rows`.
        before, after: sites around a tile; its halo has a side of q = before + p + after.

    Returns:
        (N * p**2, m) int64 places in the N * q**2 sites of all halos; -1 for none.
    """
    reach, size = math.isqrt(neighbours.shape[1]) // 2, before + side + after
    site = torch.arange(side, device=neighbours.device)[:, None]
    # The tiles whose halos may hold a site: as many as a halo is wide, from the furthest on.
    tile = (site + before) // side - torch.arange(-(-size // side), device=site.device)
    inside = site + before - tile * side  # (p, ceil(q/p))
    exists = inside < size
    tile = tile.clamp(min=-reach) + reach
    tile = tile[:, None, :, None] * (2 * reach + 1) + tile[None, :, None, :]
    inside = inside[:, None, :, None] * size + inside[None, :, None, :]
    exists = (exists[:, None, :, None] & exists[None, :, None, :]).flatten()
    near = neighbours.index_select(1, tile.flatten()).long()
    places = near * size**2 + inside.flatten()
    return places.where((near >= 0) & exists, -1).view(-1, (-(-size // side)) ** 2)


def rows_of(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N*H*W, C); a view of channels-last memory."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def maps_of(rows: Tensor, side: int) -> Tensor:
    """(N*p*p, C) -> (N, C, p, p), channels-last."""
    return rows.view(-1, side, side, rows.shape[1]).permute(0, 3, 1, 2)
