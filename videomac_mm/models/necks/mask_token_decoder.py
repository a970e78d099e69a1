"""The light decoder that predicts hidden patches from the features of visible ones."""

import torch
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from videomac_mm.models.backbones.sparse_convnext import SparseConvNeXtBlock
from videomac_mm.registry import MODELS
from videomac_mm.sparse import PatchConv2d, VisiblePatches


@MODELS.register_module()
class MaskTokenDecoder(BaseModule):
    """VideoMAC's decoder (arXiv 2402.19082, §3.2): dense ConvNeXt V2 blocks on the patch grid.

    Args:
        in_channels: channels of the encoder's last map.
        embed_dims: channels of the decoder. Defaults to 512.
        depth: number of blocks. Defaults to 1.
        patch_size: side of a predicted patch in pixels. Defaults to 32.
        out_channels: channels of the predicted image. Defaults to 3.
        init_cfg: initialisation. Defaults to truncated normal, std 0.02. The mask token
            always starts as normal noise of std 0.02.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int = 512,
        depth: int = 1,
        patch_size: int = 32,
        out_channels: int = 3,
        init_cfg: dict | list[dict] | None = dict(
            type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0
        ),
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.proj = PatchConv2d(in_channels, embed_dims, 1)
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dims, 1, 1))
        self.decoder = Sequential(
            *(
                SparseConvNeXtBlock(embed_dims, use_grn=True, layer_scale_init_value=0.0)
                for _ in range(depth)
            )
        )
        self.pred = PatchConv2d(embed_dims, patch_size**2 * out_channels, 1)

    def init_weights(self) -> None:
        """Initialise the layers by ``init_cfg``, and the mask token."""
        super().init_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | VisiblePatches) -> Tensor:
        """Predict every patch.

        Args:
            x (B, C, h, w): features of the encoder.
            mask (B, h, w): bool, True = hidden; or its `VisiblePatches`.

        Returns:
            (B, L, P): L = h*w patches, row by row; P = patch_size² * out_channels values in
            the order row, column, channel.

        Raises:
            ValueError: if features and mask are on different grids.
        """
        patches = VisiblePatches.of(mask)
        if tuple(x.shape[-2:]) != patches.grid:
            raise ValueError(
                f'features on a grid of {tuple(x.shape[-2:])} do not fit a mask of '
                f'{patches.grid}: the mask patch must equal the stride of the encoder'
            )
        # Site by site, as tiles of one: every layer is a matrix product or a kernel for tiles.
        sites = patches.everything()
        tiles = self.proj(sites.pack(x), sites)  # (B*L, C, 1, 1)
        hidden = patches.mask.flatten()[:, None, None, None]
        tiles = torch.where(hidden, self.mask_token.to(tiles.dtype), tiles)
        for block in self.decoder:
            tiles = block(tiles, sites)
        return self.pred(tiles, sites).view(len(x), patches.num_patches, -1)
