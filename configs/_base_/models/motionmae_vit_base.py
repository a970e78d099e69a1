# MotionMAE with ViT-B (arXiv 2210.04154); a re-implementation, for no code was published. The
# encoder is VideoMAE's, so that weights can be exchanged (the paper's learns its positions).
_base_ = './videomae_vit_base.py'
model = dict(
    type='videomac_mm.MotionMAE',
    neck=dict(
        pred_dims=[2 * 16 * 16 * 3, 16 * 16 * 3],
        shared=False,  # a decoder for each ("Ind"); True: one for both ("Sha"), a little worse
    ),
    head=dict(
        targets=['pixel', 'motion'],
        loss_weights=[1.0, 1.0],
        # Ours, where the paper says no more than the difference of adjacent frames.
        motion_abs=True,
        motion_norm=True,
    ),
)
