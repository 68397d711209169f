"""Video: clips frame after frame."""

from flowlib.video.rollout import rollout

__all__ = ["rollout"]
