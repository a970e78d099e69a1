"""Any backbone's features, judged by how well labels travel along them."""

import logging

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from videomac_mm.models.completeness import check_fills
from videomac_mm.models.label_propagation.context import ContextFrames, Window
from videomac_mm.models.label_propagation.strides import set_stride
from videomac_mm.registry import MODELS, TASK_UTILS

_DTYPES = ('float16', 'bfloat16', 'float32', 'float64')


@MODELS.register_module()
class LabelPropagator(BaseModel):
    """Predict the labels of a video from those of its first frame, without training.

    Frames come one at a time and in order (`VideoSampler`); only the first one's label is
    read. The defaults are DINO's form; CRW's has ``topk=10, temperature=0.05,
    window_shape='disc', window_on_first=False, num_frames=20, pad_with_first=True,
    keep_ties=False`` and a codec with ``label_resize='bilinear'``.

    Args:
        backbone: ``forward(x)`` gives maps (B, C, h, w) or tokens (B, L, C), whose first may
            stand for no place (class tokens); if several, the last counts. Choose the stage
            by its own ``out_indices``.
        codec: from labels to soft maps and back: `MaskCodec` or `KeypointCodec`.
        stride: pixels per cell. Later strides of the backbone are taken out until it is met
            (`set_stride`); the backbone's own if None, the default.
        dilate: dilate the kernels that come after, see `set_stride`. Defaults to False.
        topk: cells that a cell takes its label from.
        temperature: of the softmax over their cosine similarities.
        radius: of the window in cells; None: no window.
        window_shape: 'square' or 'disc', see `Window`.
        window_on_first, num_frames, pad_with_first: which frames a frame learns from, see
            `ContextFrames`.
        keep_ties: see `ContextFrames.propagate`.
        dtype: of features in the memory, such as 'float16'; that of the backbone's output
            if None, the default.
        data_preprocessor: ``mmengine.ImgDataPreprocessor``, which normalises frames.
        init_cfg: initialisation.

    Raises:
        ValueError: for arguments out of range, a stride that the backbone cannot have, or
            weights that do not fill it, when it is built or by ``load_state_dict``.

    Source: DINO (arXiv 2104.14294), §4.2.2 and its ``eval_video_segmentation.py``; CRW
    (arXiv 2006.14613), §3.3 and its ``test.py``.
    """

    def __init__(
        self,
        backbone: dict,
        codec: dict = dict(type='videomac_mm.MaskCodec', min_max=True),
        stride: int | None = None,
        dilate: bool = False,
        topk: int = 5,
        temperature: float = 0.1,
        radius: float | None = 12,
        window_shape: str = 'square',
        window_on_first: bool = True,
        num_frames: int = 7,
        pad_with_first: bool = False,
        keep_ties: bool = True,
        dtype: str | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        for name, value in dict(topk=topk, temperature=temperature, num_frames=num_frames).items():
            if value <= 0:
                raise ValueError(f'{name} must be positive, got {value}')
        if dtype not in (None, *_DTYPES):
            raise ValueError(f'dtype must be one of {_DTYPES}, got {dtype!r}')
        self.backbone = MODELS.build(backbone)
        self.codec = TASK_UTILS.build(codec)
        self.stride, self.pads = set_stride(self.backbone, stride, dilate)
        self.topk = topk
        self.temperature = temperature
        self.keep_ties = keep_ties
        self.context = dict(
            num_frames=num_frames,
            window=None if radius is None else Window(radius, window_shape),
            window_on_first=window_on_first,
            pad_with_first=pad_with_first,
        )
        self.dtype = None if dtype is None else getattr(torch, dtype)
        self._is_loaded = False
        self._register_load_state_dict_pre_hook(self._check_weights)
        self.init_weights()
        self._frames: ContextFrames | None = None
        self._last: tuple[str, int] | None = None
        self._ids = None

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | list[BaseDataElement]:
        """Compute features, or propagate.

        Args:
            inputs (1, 3, H, W): a frame, normalised.
            data_samples: one, with ``video``, ``frame_id``, ``img_shape``, ``ori_shape``, and
                for the first frame its label.
            mode: 'predict', or 'tensor' for the features.

        Returns:
            The features (B, C, h, w), or the data sample with what the codec predicts.

        Raises:
            ValueError: for frames out of order, a batch of several, or a missing first label.
        """
        if mode == 'tensor':
            return self.extract_feat(inputs)
        if mode != 'predict':
            raise ValueError(
                f"label propagation has nothing to learn: mode must be 'predict' or 'tensor', "
                f'got {mode!r}'
            )
        return self.predict(inputs, data_samples)

    @torch.no_grad()
    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Features of frames (B, 3, H, W) of any size: (B, C, ceil(H / s), ceil(W / s))."""
        grid = [-(-size // self.stride) for size in inputs.shape[-2:]]
        if self.pads:
            height, width = (
                number * self.stride - size for number, size in zip(grid, inputs.shape[-2:])
            )
            inputs = F.pad(inputs, (0, width, 0, height))
        return _as_maps(self.backbone(inputs), grid)

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Predict the labels of the next frame of a video; see `forward`."""
        if len(inputs) != 1:
            raise ValueError(f'label propagation takes one frame at a time, got {len(inputs)}')
        if not self._is_loaded:
            message = (
                'no checkpoint was loaded into LabelPropagator: the weights are those of '
                'init_cfg, if none were put into its backbone directly'
            )
            print_log(message, 'current', logging.WARNING)
            self._is_loaded = True  # warn once
        (sample,) = data_samples
        features = self.extract_feat(inputs)[0]
        features = features.to(self.dtype or features.dtype)
        if sample.frame_id == 0:
            labels, self._ids = self.codec.encode(sample, tuple(features.shape[1:]))
            labels = labels.to(features.device)
            self._frames = ContextFrames(features, labels, **self.context)
            self.codec.decode_first(labels, self._ids, sample)
        else:
            if self._last != (sample.video, sample.frame_id - 1):
                raise ValueError(
                    f'frame {sample.frame_id} of {sample.video!r} came after {self._last}: '
                    'frames of a video must come in order, as VideoSampler gives them'
                )
            labels = self._frames.propagate(features, self.topk, self.temperature, self.keep_ties)
            self._frames.push(features, labels)
            self.codec.decode(labels, self._ids, sample)
        self._last = sample.video, sample.frame_id
        sample.set_metainfo(dict(grid=tuple(features.shape[1:])))
        return data_samples

    def init_weights(self) -> None:
        """Initialise the weights by ``init_cfg``. The constructor does it, later calls nothing."""
        if self.is_init:
            return
        is_checking = False

        def check(state_dict: dict, prefix: str, *_) -> None:
            nonlocal is_checking
            if not is_checking:  # `check_fills` calls the backbone's hooks, this one too
                is_checking = True
                check_fills(self.backbone, state_dict, 'the backbone', prefix)
                is_checking = False

        # For an init_cfg of the backbone, whose file does not pass through this module.
        handle = self.backbone._register_load_state_dict_pre_hook(check)
        try:
            super().init_weights()
        finally:
            handle.remove()

    def _check_weights(self, state_dict: dict, prefix: str, *_) -> None:
        check_fills(self.backbone, state_dict, 'the backbone', f'{prefix}backbone.')
        for name in [name for name in state_dict if not name.startswith(f'{prefix}backbone.')]:
            del state_dict[name]  # decoders, heads, targets: nothing to warn of
        self._is_loaded = True


def _as_maps(out: Tensor | tuple[Tensor, ...], grid: list[int]) -> Tensor:
    """The (last) output as maps (B, C, h, w)."""
    out = out[-1] if isinstance(out, (tuple, list)) else out
    if out.ndim == 3:  # tokens; those of places come last
        out = out[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
    if list(out.shape[-2:]) != grid:
        raise ValueError(f'expected features on a grid of {grid}, got {tuple(out.shape)}')
    return out
