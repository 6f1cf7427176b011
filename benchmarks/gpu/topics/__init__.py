"""The topics of `benchmarks.gpu`, one file each, in order of importance."""

from ..tables import Topic
from . import ask, capture, codec, drawing, parity, prepare, profile, quantised, training


TOPICS: dict[str, Topic] = {
    "parity": parity.TOPIC,
    "capture": capture.TOPIC,
    "drawing": drawing.TOPIC,
    "quantised": quantised.TOPIC,
    "codec": codec.TOPIC,
    "prepare": prepare.TOPIC,
    "ask": ask.TOPIC,
    "training": training.TOPIC,
    "profile": profile.TOPIC,
}
