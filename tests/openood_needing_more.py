"""Postprocessors that need more of an image than z and a."""

from __future__ import annotations

import numpy as np
import torch


def looking_at_images(base):
    """Postprocessors that need more than z and a, each in a way of its own."""

    class Perturbs(base):
        def postprocess(self, net, data):
            with torch.enable_grad():
                data = torch.autograd.Variable(data, requires_grad=True)
                net(data).max(1).values.sum().backward()
            return super().postprocess(net, data.detach() - 0.1 * data.grad.sign())

    class Brightness(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf + data.flatten(1).mean(1)

    class BrightnessInSetup(base):
        def setup(self, net, known, unknown):
            self.mean = float(next(iter(known["val"]))["data"].mean())

        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * self.mean

    class Swallows(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            try:
                conf = conf + data.amax((1, 2, 3))
            except Exception:
                conf = conf * 2
            return pred, conf

    class Size(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * np.prod(data.shape[1:])

    return [Perturbs, Brightness, BrightnessInSetup, Swallows, Size]


def looking_into_the_network(base):
    """The same, with what a network can be asked for."""

    class Noise(base):
        @torch.no_grad()
        def postprocess(self, net, data):
            pred, _ = super().postprocess(net, data)
            return pred, net(torch.zeros(len(data), 3, 32, 32) + 0.1).amax(1) + super().postprocess(
                net, data
            )[1]

    class Layers(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * float(net.conv.weight.norm())

    class Norm(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * sum(float(p.norm()) for p in net.parameters())

    class Hooks(base):
        def setup(self, net, known, unknown):
            self.seen = []
            handle = net.register_forward_hook(lambda *given: self.seen.append(1))
            for batch in known["val"]:
                net(batch["data"])
            handle.remove()

    class Trains(base):
        def postprocess(self, net, data):
            net.train()
            found = super().postprocess(net, data)
            net.eval()
            return found

    class Auxiliary(base):
        def inference(self, net, data_loader, progress=True):
            found = super().inference(net, data_loader, progress)
            mean = [batch["data_aux"].flatten(1).mean(1) for batch in data_loader]
            return found[0], found[1] + torch.cat(mean).numpy(), found[2]

    class Keeps(base):
        def setup(self, net, known, unknown):
            self.net = net

    class Prunes(base):
        def setup(self, net, known, unknown):
            with torch.no_grad():
                net.fc.weight[:, ::2] = 0

    class Renames(base):
        def setup(self, net, known, unknown):
            net.temperature = 3.0

        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * getattr(net, "temperature", 1.0)

    class AsksABatch(base):
        def inference(self, net, data_loader, progress=True):
            found = super().inference(net, data_loader, progress)
            mean = [batch.get("data_aux", batch["data"]).flatten(1).mean(1) for batch in data_loader]
            return found[0], found[1] + torch.cat(mean).numpy(), found[2]

    class AsksTheDataset(base):
        def setup(self, net, known, unknown):
            known["val"].dataset.maxval = 0.5

    class Layered(base):
        def setup(self, net, known, unknown):
            self.depth = len(net.__dict__["_modules"])

    class Streams(base):
        seen = 0

        def setup(self, net, known, unknown):
            self.history = []

        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            self.history.extend(conf.tolist())
            return pred, conf - np.mean(self.history)

    return [
        Noise, Layers, Norm, Hooks, Trains, Auxiliary, Keeps, Prunes, Renames, AsksABatch, AsksTheDataset, Layered,
        Streams,
    ]  # fmt: skip


def asking_later(base):
    """Nothing during the setup and for the first images shows that it needs more."""

    class Later(base):
        APS_mode, hyperparam_search_done = False, False

        def setup(self, net, known, unknown):
            self.drawn = float(torch.rand(1))

        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            if len(data) == 8:
                conf = conf + data.flatten(1).mean(1)
            return pred, conf * self.drawn

    return Later
