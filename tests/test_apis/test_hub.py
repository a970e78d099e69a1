import pytest
import torch

from videomac_mm.apis import get_config, get_model, list_models


def test_list_models__names_every_config(root):
    stems = {path.stem for path in (root / 'configs').rglob('*.py') if '_base_' not in path.parts}
    assert list_models() == sorted(stems)
    assert list_models('*') == list_models('')
    assert list_models('videomac_resnet18') == [
        'videomac_resnet18_8xb64-coslr-100e_k400-224',
        'videomac_resnet18_8xb64-coslr-100e_ytvos-224',
    ]
    assert list_models('no such model') == []


def test_get_config__makes_a_copy_to_edit(tmp_path):
    cfg = get_config('videomac_convnextv2-atto_demo')
    assert cfg.model.type == 'videomac_mm.VideoMAC'
    cfg.dump(tmp_path / 'mine.py')
    assert 'videomac_mm.VideoMAC' in (tmp_path / 'mine.py').read_text()
    name = 'videomac_resnet18_8xb64-coslr-100e_k400-224'
    for get in (get_config, get_model):
        with pytest.raises(ValueError, match=f'unknown model .videomac_resnet19.*{name}'):
            get(name.replace('18', '19'))


@pytest.mark.parametrize(
    ('name', 'toolbox'),
    [
        ('videomac_convnextv2-atto_demo', 'videomac_mm'),
        ('davis2016-dino_videomac-convnextv2-atto', 'videomac_mm'),
        ('finetune_convnextv2-atto_synthetic-112', 'mmpretrain'),
        ('tsn_convnextv2-atto_synthetic-1x1x4-112', 'mmaction'),
        ('fcn_convnextv2-atto_synthetic-112', 'mmseg'),
    ],
)
def test_get_model__builds_in_the_scope_of_each_toolbox(name, toolbox, tmp_path):
    pytest.importorskip(toolbox)
    model = get_model(name)
    assert type(model).__module__.startswith(toolbox) and not model.training
    assert type(model.data_preprocessor).__name__ != 'BaseDataPreprocessor'
    path = tmp_path / 'weights.pth'
    for value in model.parameters():
        value.data.mul_(0.5)
    torch.save(model.state_dict(), path)
    again = get_model(name, pretrained=path, device='cpu').state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(again[key], value), key


def test_get_model__takes_changes():
    model = get_model('finetune_convnextv2-atto_synthetic-112', head=dict(num_classes=7))
    assert model.head.fc.out_features == 7
    features = model.extract_feat(torch.rand(1, 3, 64, 64))
    assert features[-1].shape == (1, 320)
