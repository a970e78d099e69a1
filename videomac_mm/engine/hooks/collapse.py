"""Signs that learning has gone wrong, which come before the loss shows it."""

import logging
import math
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch import Tensor, nn

from videomac_mm.engine.unwrap import unwrap
from videomac_mm.registry import HOOKS
from videomac_mm.sparse import VisiblePatches
from videomac_mm.sparse.geometry import rows_of


def effective_rank(features: Tensor) -> Tensor:
    """How many directions features use: exp of the entropy of their singular values.

    The singular values are divided by their sum. Features are not centred: the same vector for
    everything has rank 1, n orthogonal vectors of equal length have rank n. Scale does not matter.

    Args:
        features (N, C): a vector per sample.

    Returns:
        A scalar in float64, from 1 to min(N, C); NaN if a feature is not finite.

    Raises:
        ValueError: for another number of axes, or no features.

    Source: RankMe (arXiv 2210.02885), Eq. 1, without its epsilon of 1e-7.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f'features must have shape (N, C), got {tuple(features.shape)}')
    features = features.detach().double()
    if not features.isfinite().all():
        return features.new_tensor(float('nan'))
    tiny = torch.finfo(features.dtype).tiny
    features = features / features.abs().max().clamp(min=tiny)  # squares must not overflow
    if len(features) < features.shape[1]:
        features = features.T
    # Several times as fast as singular values. In float64 the error is far below RankMe's epsilon.
    values = torch.linalg.eigvalsh(features.T @ features).clamp(min=0).sqrt()
    return torch.special.entr(values / values.sum().clamp(min=tiny)).sum().exp()


def prediction_spread(preds: Tensor, targets: Tensor) -> Tensor:
    """How much predictions differ from each other, relative to their targets.

    The root of the summed variances of all values, over samples: 0 if every sample gets the same
    prediction, 1 if predictions are the targets. The best predictor under a squared error has
    the root of the share of variance that it explains.

    Args:
        preds, targets (N, P): values per sample.

    Returns:
        A scalar in float32; NaN if a value is not finite, or predictions and targets are all
        alike.

    Raises:
        ValueError: if shapes differ, or have another number of axes.

    Source: own.
    """
    if preds.ndim != 2 or preds.shape != targets.shape:
        raise ValueError(
            'preds and targets must have the same shape (N, P), got '
            f'{tuple(preds.shape)} and {tuple(targets.shape)}'
        )
    apart = ((x - x.mean(0)).norm() for x in (preds.detach().float(), targets.detach().float()))
    return torch.div(*apart)


@HOOKS.register_module()
class CollapseHook(Hook):
    """Log what tells that a masked autoencoder collapses; warn when it does.

    Every ``interval`` iterations there are new values of

    - ``effective_rank``: `effective_rank` of the online encoder's features, and
      ``effective_rank_share``, the same divided by the largest value possible, the smaller of
      samples and channels;
    - ``prediction_spread``: `prediction_spread` of hidden patches, as the loss compares them. Of
      several targets, each has its own: ``prediction_spread_pixel``, ``prediction_spread_motion``;
    - ``target_distance``: `TargetNetwork.distance` after the target has moved, for algorithms
      with a target.

    The features are those of visible sites or tokens. RankMe takes one vector per image, of
    25,600 images. A batch has few images: the rank of their means could not exceed its size. It
    has many sites, and if the encoder collapses they are alike, too. Tokens also differ by place,
    so a transformer that looks at places only keeps some rank. Its predictions lose their spread.

    Everything is taken from the training step itself, by forward hooks that stay for that step
    only. There is no second pass, and the step computes the same numbers. Compiled parts
    of the network run uncompiled in that step, since compiled ones leave hooks out. (Before torch
    2.6 they do not, and their features and predictions are not seen.) Of several processes, the
    first measures its own share of the batch. Statistics are in float32 or float64 under
    autocast, too.

    A value beyond its threshold is worth a warning, and so is NaN. There is one when the value
    crosses it, and another only after it has come back. Checkpoints hold what has been warned of.

    The defaults lie between healthy and broken runs of the demos. Healthy ones have ranks from 8
    to 50 and spreads from 0.02 (motion, which is learnt late) to 0.7. Distances are from 0.002 to
    0.1, and 1e-4 where the learning rate ends in 0. A learning rate 100 times as high gives ranks
    from 1.0 to 3.7. VideoMAE's spread is then 3e-5, at the loss that a healthy run has, too.

    Args:
        interval: iterations between values. Defaults to 100.
        warm_up: the share of the run in which only NaN is a reason to warn. An untrained network
            predicts much the same everywhere. Defaults to 0.1.
        num_samples: feature vectors and hidden patches that are looked at, evenly spread over the
            batch. Defaults to 512.
        min_rank: threshold of ``effective_rank``, a number of directions: collapse leaves few,
            however many there could be. None: never warn. Defaults to 4.
        min_spread: threshold of ``prediction_spread``, or None. Defaults to 0.005.
        max_spread: its upper threshold, or None. Beyond it predictions differ far more than what
            they predict: weights explode, or clips show nothing. Defaults to 3.
        min_distance: threshold of ``target_distance``, or None. Defaults to 1e-6.

    Raises:
        ValueError: if a number is out of range.
    """

    # After the target has moved, before LoggerHook (60).
    priority = 55

    def __init__(
        self,
        interval: int = 100,
        warm_up: float = 0.1,
        num_samples: int = 512,
        min_rank: float | None = 4.0,
        min_spread: float | None = 0.005,
        max_spread: float | None = 3.0,
        min_distance: float | None = 1e-6,
    ) -> None:
        if interval < 1 or num_samples < 2 or not 0 <= warm_up <= 1:
            raise ValueError(
                'interval must be at least 1, num_samples at least 2 and warm_up in [0, 1], got '
                f'{interval}, {num_samples} and {warm_up}'
            )
        thresholds = dict(
            min_rank=min_rank,
            min_spread=min_spread,
            max_spread=max_spread,
            min_distance=min_distance,
        )
        for name, value in thresholds.items():
            if value is not None and not value >= 0:
                raise ValueError(f'{name} must be None or not negative, got {value}')
        self.interval = interval
        self.warm_up = warm_up
        self.num_samples = num_samples
        self._least = dict(
            effective_rank=min_rank, prediction_spread=min_spread, target_distance=min_distance
        )
        self._most = dict(prediction_spread=max_spread)
        self._warned: set[str] = set()  # of values that have not come back
        self._blind = False  # whether a step has been seen that called no hooks
        self._watching = ExitStack()
        self._features: Tensor | None = None
        self._spreads: list[Tensor] = []

    def before_train(self, runner) -> None:
        """Refuse models that are no masked autoencoders.

        Raises:
            TypeError: for models without a backbone and a head with a ``loss_module``.
        """
        model = unwrap(runner.model)
        if not hasattr(model, 'backbone') or not hasattr(
            getattr(model, 'head', None), 'loss_module'
        ):
            raise TypeError(
                'CollapseHook needs a masked autoencoder, with a backbone and a head that has a '
                f'loss_module, got {type(model).__name__}'
            )

    @master_only
    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the step if it is time."""
        self._watching.close()
        if not self.every_n_train_iters(runner, self.interval):
            return
        self._features, self._spreads = None, []
        model = unwrap(runner.model)
        for handle in (
            model.backbone.register_forward_hook(self._see_features, with_kwargs=True),
            model.head.loss_module.register_forward_pre_hook(
                self._see_predictions, with_kwargs=True
            ),
        ):
            self._watching.callback(handle.remove)
        if hasattr(torch.compiler, 'set_stance'):
            self._watching.enter_context(torch.compiler.set_stance('force_eager'))

    @master_only
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log what the step has shown, and warn."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        self._watching.close()
        step = runner.iter + 1
        is_early = step <= self.warm_up * runner.max_iters
        for name, value in self._measure(unwrap(runner.model)).items():
            runner.message_hub.update_scalar(f'train/{name}', value)
            self._judge(name, value, step, is_early)

    @master_only
    def after_train(self, runner) -> None:
        """Leave nothing behind."""
        self._watching.close()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Note what has been warned of."""
        checkpoint['collapse_warned'] = sorted(self._warned)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Do not repeat the warnings of the run that is resumed."""
        if runner._resume:
            self._warned = set(checkpoint.get('collapse_warned', ()))

    @torch.no_grad()
    def _see_features(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        features = output[-1] if isinstance(output, (tuple, list)) else output
        if not features.requires_grad:  # another hook's, such as those of a picture
            return
        if features.ndim == 4:  # maps, where hidden sites are zero
            mask = kwargs.get('mask', args[1] if len(args) > 1 else None)
            features = rows_of(features if mask is None else VisiblePatches.of(mask).pack(features))
        else:
            features = features.flatten(0, -2)
        self._features = features[self._some(len(features), features.device)].float()

    @torch.no_grad()
    def _see_predictions(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = {**dict(zip(('pred', 'target', 'mask'), args)), **kwargs}
        preds, targets, hidden = map(given.get, ('pred', 'target', 'mask'))
        if preds is None or not preds.requires_grad:  # of the target network
            return
        preds, targets = preds.flatten(0, -2), targets.flatten(0, -2)
        if hidden is None:  # hidden patches alone are predicted
            some = self._some(len(preds), preds.device)
        else:
            places = hidden.flatten().nonzero()[:, 0]
            some = places[self._some(len(places), places.device)]
        self._spreads.append(prediction_spread(preds[some], targets[some]))

    def _some(self, count: int, device: torch.device) -> Tensor:
        """Indices of samples, evenly spread; without random numbers, which the run needs."""
        chosen = min(count, self.num_samples)
        return torch.arange(chosen, device=device) * count // chosen

    def _measure(self, model: nn.Module) -> dict[str, float]:
        found = {}
        if self._features is not None:
            features = self._features.cpu()
            found['effective_rank'] = effective_rank(features).item()
            found['effective_rank_share'] = found['effective_rank'] / min(features.shape)
        names = getattr(model.head, 'targets', ())
        for place, spread in enumerate(self._spreads):
            # A head that compares several things names them, in this order.
            suffix = f'_{names[place]}' if len(names) == len(self._spreads) > 1 else ''
            found[f'prediction_spread{suffix}'] = spread.item()
        if not found and not self._blind:
            self._blind = True
            print_log(
                'CollapseHook sees no features and no predictions: hooks of the backbone and of '
                'the loss were not called. torch before 2.6 leaves them out of compiled networks.',
                logger='current',
                level=logging.WARNING,
            )
        if hasattr(getattr(model, 'target', None), 'distance'):
            found['target_distance'] = model.target.distance(model).item()
        self._features, self._spreads = None, []
        return found

    def _judge(self, name: str, value: float, step: int, is_early: bool) -> None:
        # One threshold for the predictions of all targets.
        key = 'prediction_spread' if name.startswith('prediction_spread') else name
        least, most = self._least.get(key), self._most.get(key)
        if least is None and most is None:
            return
        if math.isnan(value):
            problem = _NAN
        elif least is not None and value < least:
            problem = f'expected at least {least:g}: {_TOO_LOW[key]}'
        elif most is not None and value > most:
            problem = f'expected at most {most:g}: {_TOO_HIGH}'
        elif name in self._warned:
            self._warned.remove(name)
            print_log(f'{name} has come back to {value:.3g} at iteration {step}.', 'current')
            return
        else:
            return
        if name not in self._warned and (math.isnan(value) or not is_early):
            self._warned.add(name)
            print_log(
                f'{name} is {value:.3g} at iteration {step}, {problem}',
                logger='current',
                level=logging.WARNING,
            )


_TOO_LOW = dict(
    effective_rank='the encoder sees nearly the same in all visible patches. Consider a lower '
    'learning rate, a longer warm-up or gradient clipping.',
    prediction_spread='all hidden patches get nearly the same prediction. Look at the pictures of '
    'ReconstructionHook. Consider a lower learning rate or a longer warm-up.',
    target_distance='the target network equals the online one and teaches it nothing. Consider a '
    'higher momentum of TargetEMAHook.',
)
_TOO_HIGH = (
    'predictions differ far more than what they predict. Look at the data, whether they show '
    'anything. Consider a lower learning rate or gradient clipping.'
)
_NAN = (
    'a value is not finite, or all patches are alike, predicted and real ones. Look at the loss, '
    'the gradients and the data.'
)
