"""Repairs of what mmengine 0.10, mmcv 2.1, mmpretrain 1.2 and mmaction2 1.2 break today.

One file per repaired package, in it one function per upstream problem, named after it;
`apply` runs them all when ``videomac_mm`` is imported. Each leaves sound releases alone,
may run twice, and imports nothing for the sake of repairing it: modules that are not
loaded yet are repaired right after somebody imports them.
"""

from videomac_mm.compat import _repair, mmaction, mmcv, mmengine, multimodal, torch


def apply() -> None:
    """Apply every repair; later calls change nothing."""
    _repair.install_finders()
    torch.weights_only_refuses_history_buffer()
    mmengine.launcher_needs_cuda()
    mmengine.ddp_needs_cuda()
    mmengine.zero_optimizer_hangs_at_checkpoints()
    mmengine.checkpoints_are_written_in_place()
    mmengine.resumes_from_what_may_be_damaged()
    mmengine.downloads_are_unpickled_freely()
    mmengine.amp_optim_wrapper_refuses_cpu()
    mmcv.toolboxes_import_compiled_ops()
    mmcv.hue_jitter_overflows()
    mmaction.wheel_lacks_drn()
    mmaction.head_scores_in_bfloat16()
    mmaction.hue_jitter_overflows()
    mmaction.features_stay_in_a_tuple()
    multimodal.optional_models_stop_all_others()
