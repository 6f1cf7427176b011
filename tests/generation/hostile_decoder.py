"""A decoder that overwrites everything that the interface of decoders lets a decoder overwrite."""

import dataclasses

import torch

from janus_hf.generation.decoders import StepInput


class HostileDecoder:
    """Runs the steps of another decoder, and overwrites outputs, inputs and old caches as soon as that is allowed.

    Numbers become NaN and integers -1. An image that is equal to that of the other decoder alone was computed without
    an output that a later step had overwritten, without an input of an earlier step, and without values that an
    earlier batch had left in a cache.
    """

    def __init__(self, decoder):
        self.decoder, self.cache, self.output = decoder, None, None

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def make_cache(self, *args):
        for layer in self.cache.layers if self.cache else ():
            if layer.is_initialized:
                ruin([layer.keys, layer.values])
        self.cache = self.decoder.make_cache(*args)
        return self.cache

    def step(self, model, cache, step):
        if self.output is not None:
            ruin(self.output)
        copies = copy_of(step)
        self.output = self.decoder.step(model, cache, copies)
        ruin(tensors_of(copies))
        return self.output


def copy_of(step: StepInput) -> StepInput:
    """Return a step whose tensors have memory of their own."""

    def cloned(record):
        values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        return dataclasses.replace(
            record, **{key: value.clone() for key, value in values.items() if isinstance(value, torch.Tensor)}
        )

    draw = cloned(step.draw)
    return dataclasses.replace(cloned(step), draw=dataclasses.replace(draw, sampling=cloned(draw.sampling)))


def tensors_of(step: StepInput) -> list[torch.Tensor]:
    """Return all tensors of a step."""
    records = (step, step.draw, step.draw.sampling)
    values = [getattr(record, field.name) for record in records for field in dataclasses.fields(record)]
    return [value for value in values if isinstance(value, torch.Tensor)]


def ruin(tensors) -> None:
    """Overwrite tensors in place."""
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
