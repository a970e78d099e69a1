"""The smallest model, data set and metric that a runner accepts, for tests of the tools."""

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)
        )

    def forward(self, inputs, mode='tensor'):
        pred = self.net(inputs)
        if mode == 'loss':
            bits = torch.tensor(pred.element_size() * 8.0)
            return dict(loss=pred.float().square().mean(), bits=bits)
        return [dict(pred=x) for x in pred]


@DATASETS.register_module()
class ToyData(torch.utils.data.Dataset):
    metainfo = {}

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return dict(inputs=torch.randn(4, generator=torch.Generator().manual_seed(index)))


@METRICS.register_module()
class ToyMetric(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += [sample['pred'].item() for sample in data_samples]

    def compute_metrics(self, results):
        return dict(count=float(len(results)))
