"""The rivals in NumPy float64, one image at a time, straight from their definitions; and what their tests share."""

import numpy as np
import torch
from scipy.special import logsumexp
from tiny import HEAD, TinyNet

from openood_adascale.evidence.classifier import Classifier
from openood_adascale.evidence.encode import encode


def reference_lts(a, weight, bias, percentile):
    positive = np.sort(np.maximum(a, 0))[::-1]
    k = max(1, a.size - int(np.round(a.size * percentile / 100)))
    return logsumexp((weight @ a + bias) * (positive.sum() / positive[:k].sum()) ** 2)


def reference_bfact(a, weight, bias, cutoff, order):
    return logsumexp(weight @ (a / np.sqrt(1 + (a / cutoff) ** (2 * order))) + bias)


def reference_theta(train, weight, bias, edges):
    importance = np.zeros(len(edges) - 1)
    for a in train:
        predicted = weight[np.argmax(weight @ a + bias)]
        for k in range(len(importance)):
            inside = (a >= edges[k]) & (a < edges[k + 1])
            importance[k] += (predicted * a)[inside].sum() / len(train)
    return 1000 * importance / np.sqrt((importance**2).sum())


def reference_optfs(a, weight, bias, edges, theta, score):
    shaped = np.zeros_like(a)
    for k in range(len(theta)):
        inside = (a >= edges[k]) & (a < edges[k + 1])
        shaped[inside] = theta[k] * a[inside]
    if score == "energy":
        return logsumexp(weight @ shaped + bias)
    return weight[np.argmax(weight @ a + bias)] @ shaped


class Signed(TinyNet):
    """Activations of both signs, as a ViT's."""

    def __init__(self):
        super().__init__()
        self.features.append(torch.nn.LayerNorm(64))


def activations(network, images):
    return encode(Classifier(network, images), images).activation.double().numpy()


def head(network):
    return network.fc.weight.detach().double().numpy(), network.fc.bias.detach().double().numpy()


def passes(network, call):
    """Images that the network sees during a call, without the two that the head is found with."""
    network.calls.clear()
    call()
    return sum(network.calls) - HEAD
