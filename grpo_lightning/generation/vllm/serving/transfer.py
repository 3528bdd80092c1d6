"""What every route of weights to a vLLM server does."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

from grpo_lightning.generation.vllm.serving.client import ServerRefused, ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.weights.stream import WeightStream


class WeightTransfer(ABC):
    """One route. All ranks call ``send`` together; one of them, the sender, talks to the server.

    Args:
        client: Of the server.
        is_sender: Whether this rank talks to the server; the others only take part in gathering sharded weights.
    """

    def __init__(self, client: VLLMClient, is_sender: bool) -> None:
        self.client = client
        self.is_sender = is_sender
        self.caches = ["/reset_prefix_cache"]
        """Routes that drop what the server has made with its old weights."""

    @abstractmethod
    def send(self, stream: WeightStream) -> None:
        """Puts the weights into the server's engine. It serves no request meanwhile."""

    @abstractmethod
    def send_again(self) -> bool:
        """Repeats the last transfer to a server that was started again, without the policy; False if it cannot."""

    def forget_connection(self) -> None:  # noqa: B027 - most routes have none
        """The server was started again: what was agreed with it before is void."""

    def close(self) -> None:  # noqa: B027 - nothing to release by default
        """Releases files and connections."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around an update: requests wait, and what was cached from the old weights is dropped.

        After an update that the server could not do they wait no longer: the run ends with the error, and a rank whose
        requests are under way must end too.
        """
        self.client.post("/pause?mode=keep")
        try:
            yield
        except ServerRefused:
            with contextlib.suppress(ServerUnavailable, ServerRefused):
                self.client.post("/resume")
            raise
        for route in self.caches:
            self.client.post(route)
        self.client.post("/resume")
