# On VIP, as users of CRW's code read its paper: 4 frames instead of 20.
_base_ = './label_propagation_crw.py'

model = dict(
    codec=dict(
        blend_ids=True,  # as CRW's code does, by mistake; see MaskCodec
        output_size='image',
    ),
    num_frames=4,
)
