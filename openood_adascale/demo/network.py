"""Network of the demo and its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

EPOCHS = 10
LABEL_SMOOTHING = 0.1


class SmallConvNet(nn.Module):
    """Convolutional network with batch norm and 256 features for 32×32 images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2), (64, 256, 2)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, classes) for images of shape (B, 3, 32, 32)."""
        return self.fc(self.features(images).mean((2, 3)))


def train(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    batch_size: int = 64,
    progress: bool | None = None,
) -> SmallConvNet:
    """Train the demo's network on the CPU and return it in eval mode.

    SGD with Nesterov momentum, a one-cycle learning rate, weight decay 5e-4 and label smoothing 0.1.
    The global random state is left as it was.

    Args:
        images: Normalised float32 images of shape (N, 3, 32, 32).
        labels: Class indices of shape (N,), int64.
        classes: Number of classes.
        seed: Seed of the initial weights and of the order of the images.
        epochs: Number of epochs.
        batch_size: Images per training step.
        progress: Show a progress bar (default: only on a terminal).
    """
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        network = SmallConvNet(classes).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = max(1, len(images) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.1, total_steps=epochs * steps, pct_start=0.25
        )
        for _ in tqdm(range(epochs), desc="Training", disable=None if progress is None else not progress):
            order = torch.randperm(len(images))
            for rows in order.split(batch_size)[:steps]:
                loss = functional.cross_entropy(
                    network(images[rows]), labels[rows], label_smoothing=LABEL_SMOOTHING
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval()
