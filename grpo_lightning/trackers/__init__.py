"""What a run tells the trackers that people use: tables, alerts and metadata, each in the tracker's own form."""

from grpo_lightning.trackers.base import Table, Tracker
from grpo_lightning.trackers.kinds import tracker_of
from grpo_lightning.trackers.trackio import TrackioLogger

__all__ = ["Table", "Tracker", "TrackioLogger", "tracker_of"]
