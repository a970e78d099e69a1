"""The geometry of a masked batch: which patches are visible and who their neighbours are."""

import functools

import torch
from torch import Tensor

from videomac_mm.sparse.functional import Gather, maps_of, rows_of


class VisiblePatches:
    """A mask, turned into the geometry that layers on packed tiles ask for.

    The maps of a masked batch hold K visible patches per image. Packed, they are tiles
    ``(B*K, C, p, p)`` in channels-last memory, ordered by image and row by row inside it,
    at every stride of the network: only the side p of a tile changes. All sites of a
    visible patch are visible, all others do not exist.

    Args:
        mask (B, h, w): bool on the patch grid, True = hidden. Every image must hide the
            same number of patches, and show at least one.

    Raises:
        TypeError: if ``mask`` is not bool.
        ValueError: if it is not three-dimensional, shows nothing, or shows unequal counts.

    Source: own.
    """

    # How many patches are visible depends on data, so graph compilers are kept out. All that
    # follows has shapes that they know.
    @torch.compiler.disable
    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise TypeError(f'mask must be bool (True = hidden), got {mask.dtype}')
        if mask.ndim != 3:
            raise ValueError(f'mask must have shape (B, h, w), got {tuple(mask.shape)}')
        counts = (~mask).flatten(1).sum(1)
        fewest, most = counts.min().item(), counts.max().item()
        if fewest != most:
            raise ValueError(
                f'every image must show the same number of patches, got {counts.tolist()}'
            )
        if fewest == 0:
            raise ValueError(
                f'mask of shape {tuple(mask.shape)} hides every patch; at least one per '
                'image must be visible'
            )
        self._describe(mask, fewest, (~mask).nonzero().unbind(1))

    def _describe(self, mask: Tensor, num_visible: int, visible: tuple[Tensor, ...]) -> None:
        self.mask = mask
        self.batch_size, *grid = mask.shape
        self.grid: tuple[int, int] = tuple(grid)
        self.num_visible = num_visible
        self._visible = visible  # image, row, column: each (B*K,)
        self._tables = {}

    @classmethod
    def of(cls, mask: 'Tensor | VisiblePatches') -> 'VisiblePatches':
        """The geometry of a mask; what already is one is given back, with its tables."""
        return mask if isinstance(mask, cls) else cls(mask)

    @classmethod
    def everything(
        cls, batch_size: int, grid: tuple[int, int], device: torch.device
    ) -> 'VisiblePatches':
        """The geometry of maps that hide nothing."""
        if torch.compiler.is_compiling():
            return _everything.__wrapped__(batch_size, *grid, device, False)
        # What is made in inference mode cannot serve training later.
        return _everything(batch_size, *grid, device, torch.is_inference_mode_enabled())

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
        packed = rows_of(maps).index_select(0, self._sites(side))
        return maps_of(packed, -1, side, side)

    def unpack(self, tiles: Tensor, fill: float = 0.0) -> Tensor:
        """Put tiles back on dense maps; hidden sites are ``fill``.

        Args:
            tiles (B*K, C, p, p): as `pack` returns them.
            fill: the value of hidden sites.

        Returns:
            (B, C, h*p, w*p) in channels-last memory.
        """
        side, channels = tiles.shape[-1], tiles.shape[1]
        height, width = self.grid[0] * side, self.grid[1] * side
        canvas = tiles.new_full((self.batch_size * height * width, channels), fill)
        canvas.index_copy_(0, self._sites(side), rows_of(tiles))
        return maps_of(canvas, self.batch_size, height, width)

    def windows(
        self,
        tiles: Tensor,
        kernel: int,
        stride: int,
        before: int,
        fill: float = 0.0,
        kernels: bool = True,
    ) -> Tensor:
        """What each window of a conv sees, across the borders of tiles.

        Args:
            tiles (B*K, C, p, p): as `pack` returns them.
            kernel: side of a window in sites.
            stride: distance of windows in sites; divides p.
            before: sites by which a tile's first window starts above and left of the tile.
            fill: the value of sites that are hidden or outside of the image.
            kernels: whether `cpu_kernels` may be used.

        Returns:
            (B*K, n, n, kernel, kernel, C) with ``n = p // stride``, contiguous.
        """
        side, channels = tiles.shape[-1], tiles.shape[1]
        table, adjoint = self._window_tables(side, kernel, stride, before)
        sites = Gather.apply(rows_of(tiles), table, adjoint, fill, kernels)
        num = side // stride
        return sites.view(-1, num, num, kernel, kernel, channels)

    def halo(
        self,
        tiles: Tensor,
        before: int,
        after: int,
        fill: float = 0.0,
        kernels: bool = True,
    ) -> Tensor:
        """Surround every tile by what a window reaching over its border would see.

        Args:
            tiles (B*K, C, p, p): as `pack` returns them.
            before: sites to add above and to the left.
            after: sites to add below and to the right.
            fill: the value of sites that are hidden or outside of the image.
            kernels: whether `cpu_kernels` may be used.

        Returns:
            (B*K, C, q, q) with ``q = before + p + after``, in channels-last memory.
        """
        side = tiles.shape[-1]
        surrounded = self.windows(tiles, before + side + after, side, before, fill, kernels)
        return surrounded[:, 0, 0].permute(0, 3, 1, 2)

    def neighbours(self, reach: int = 1) -> Tensor:
        """Which tiles lie around every tile, itself in the middle.

        Args:
            reach: how many tiles to look at in each direction. Defaults to 1.

        Returns:
            (B*K, (2*reach + 1)**2) int32 indices of tiles, row by row; -1 where a patch is
            hidden or outside of the image.
        """
        key = 'neighbours', reach
        if key not in self._tables:
            image, row, column = (axis[:, None, None] for axis in self._visible)
            tiles = image.new_full(self.mask.shape, -1)
            tiles[self._visible] = torch.arange(len(image), device=image.device)
            tiles = torch.nn.functional.pad(tiles, (reach, reach, reach, reach), value=-1)
            across = torch.arange(2 * reach + 1, device=image.device)
            table = tiles[image, row + across[:, None], column + across]
            self._tables[key] = table.flatten(1).int()
        return self._tables[key]

    def pairs(self, side: int, kernel: int, stride: int, before: int) -> tuple[Tensor, Tensor]:
        """Which sites exist at each place of the windows of a conv.

        Args:
            side: p, of the tiles.
            kernel, stride, before: as `windows`.

        Returns:
            (M, kernel**2) int32, the row of the tiles, as `rows_of` orders them, that each of
            M windows reads at each place, and (B*K*p*p, kernel**2) int32, the window that reads
            each row there; -1 for none.
        """
        key = 'pairs', side, kernel, stride, before
        if key not in self._tables:
            rows = self._window_rows(side, kernel, stride, before)
            num_rows = len(self._sites(side))
            table = rows.where(rows < num_rows, -1).view(-1, kernel**2).int()
            window, place = (table >= 0).nonzero().unbind(1)
            adjoint = table.new_full((num_rows, kernel**2), -1)
            adjoint[table[window, place], place] = window.int()
            self._tables[key] = table, adjoint
        return self._tables[key]

    def per_image(self, tiles: Tensor) -> Tensor:
        """View channels-last tiles ``(B*K, p, p, C)`` as the sites of their images.

        Returns:
            (B, K*p*p, C)
        """
        return tiles.reshape(self.batch_size, -1, tiles.shape[-1])

    def num_sites(self, side: int, before: int = 0, after: int = 0) -> tuple[int, int]:
        """Sites per image that a conv reads: on halos, and on a canvas of the whole map."""
        surrounded = (before + side + after) ** 2
        return self.num_visible * surrounded, self.grid[0] * self.grid[1] * side**2

    def _side_of(self, maps: Tensor) -> int:
        size = tuple(maps.shape[-2:])
        side = size[0] // self.grid[0]
        if len(maps) != self.batch_size or size != (
            side * self.grid[0],
            side * self.grid[1],
        ):
            raise ValueError(
                f'maps of shape {tuple(maps.shape)} do not fit a mask of shape '
                f'{(self.batch_size, *self.grid)}: batch sizes must agree and height and '
                'width be the same multiple of the patch grid'
            )
        return side

    def _sites(self, side: int) -> Tensor:
        """Where each packed row lies on the canvas: (B*K*p*p,)."""
        if side not in self._tables:
            image, y, x = self._coordinates(side, side, side)
            height, width = self.grid[0] * side, self.grid[1] * side
            self._tables[side] = ((image * height + y) * width + x).flatten()
        return self._tables[side]

    def _window_tables(
        self, side: int, kernel: int, stride: int, before: int
    ) -> tuple[Tensor, Tensor]:
        """Which row lies on each site of the windows (M, 1), and on which sites each row lies."""
        key = 'windows', side, kernel, stride, before
        if key not in self._tables:
            table = self._window_rows(side, kernel, stride, before)
            num_rows = len(self._sites(side))
            # A row is seen by as many windows as cover a site.
            reach = (-(-kernel // stride)) ** 2
            order = table.argsort(stable=True)
            start = torch.searchsorted(
                table[order], torch.arange(num_rows + 1, device=table.device)
            )
            place = start[:-1, None] + torch.arange(reach, device=table.device)
            inside = place < start[1:, None]
            adjoint = order[place.clamp(max=len(order) - 1)]
            self._tables[key] = table[:, None], adjoint.where(inside, len(table))
        return self._tables[key]

    def _window_rows(self, side: int, kernel: int, stride: int, before: int) -> Tensor:
        """Which row lies on each site of the windows: (M,); where none does, their number."""
        sites = self._sites(side)
        num_rows = len(sites)
        height, width = self.grid[0] * side, self.grid[1] * side
        rows = sites.new_full((self.batch_size * height * width,), num_rows)
        rows[sites] = torch.arange(num_rows, device=sites.device)
        after = max(kernel - stride - before, 0)
        rows = torch.nn.functional.pad(
            rows.view(self.batch_size, height, width),
            (before, after, before, after),
            value=num_rows,
        )
        return rows[self._coordinates(side, kernel, stride)].flatten()

    def _coordinates(self, side: int, kernel: int, stride: int) -> tuple[Tensor, ...]:
        """Image, row and column of every site of every window of the visible tiles.

        Each broadcasts to (B*K, n, n, kernel, kernel); windows start where their tile does.
        """
        image, row, column = (axis[:, None, None, None, None] for axis in self._visible)
        first = torch.arange(0, side, stride, device=image.device)
        inside = torch.arange(kernel, device=image.device)
        y = row * side + first[:, None, None, None] + inside[:, None]
        x = column * side + first[:, None, None] + inside
        return image, y, x


@functools.lru_cache(maxsize=8)  # with all tables
def _everything(
    batch_size: int, height: int, width: int, device: torch.device, _: bool
) -> VisiblePatches:
    site = torch.arange(batch_size * height * width, device=device)
    visible = site // (height * width), site // width % height, site % width
    patches = VisiblePatches.__new__(VisiblePatches)
    mask = torch.zeros(batch_size, height, width, dtype=torch.bool, device=device)
    patches._describe(mask, height * width, visible)
    return patches
