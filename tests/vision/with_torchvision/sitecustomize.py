"""On PYTHONPATH of a process of its own, such as a vLLM server: torchvision is there from its start."""

from tests.vision.cpu_torchvision import import_torchvision

kept = import_torchvision()
