"""What rewards have in common that ask a server."""

from __future__ import annotations

from dataclasses import dataclass, field

from grpo_lightning.rewards.base import BaseRewardFunction
from grpo_lightning.rewards.kinds.http_client import HTTPClient


@dataclass
class RemoteReward(BaseRewardFunction):
    """Address, patience and key; each completion is a request of its own.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        url: Complete address of the endpoint.
        timeout: Seconds per attempt.
        retries: Further attempts after a lost connection, a time-out, a busy or failing server.
        backoff: Seconds before the second attempt, doubled for each further one.
        concurrency: Requests at the same time.
        api_key_env: Environment variable with the key.
    """

    url: str = ""
    timeout: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    concurrency: int = 32
    api_key_env: str | None = None
    _client: HTTPClient = field(init=False, repr=False, compare=False)

    scope = "completion"

    def __post_init__(self) -> None:
        """Refuses settings that cannot work.

        Raises:
            ValueError: Naming the reward and the setting.
        """
        try:
            self._client = HTTPClient(self.url, self.timeout, self.retries, self.backoff, self.api_key_env)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.call_time_limit = self._client.longest
