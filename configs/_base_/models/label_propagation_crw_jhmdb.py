# On JHMDB, as users of CRW's code read its paper: 7 frames instead of 20.
_base_ = './label_propagation_crw.py'

model = dict(
    codec=dict(_delete_=True, type='videomac_mm.KeypointCodec', sigma=0.5, topk=3),
    num_frames=7,
)
