"""One environment in a child process of its own."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from grpo_lightning.concurrency.tracebacks import traceback_of
from grpo_lightning.environments.environment_class import EnvironmentClass
from grpo_lightning.environments.episode import EnvironmentContractError, EnvironmentFault, ToolMistake
from grpo_lightning.environments.instance import Instance
from grpo_lightning.environments.printed import Tail, captured


class InstanceRunner:
    """Runs operations on one environment, asynchronous ones on a loop that lasts.

    Args:
        described: Its class.
        limit: Characters of each text.
    """

    def __init__(self, described: EnvironmentClass, limit: int) -> None:
        self.instance = Instance(described, limit)
        self.loop = asyncio.new_event_loop()

    def __call__(self, request: tuple[Any, ...]) -> tuple[str, Any]:
        """Of ``(operation, *arguments)``: ``("answer", Answer)``, ``("raised", (message, traceback))``, or what is wrong with
        ``("fault", text)``, ``("mistake", text)`` or ``("contract", text)``.
        """
        tail = Tail()
        try:
            with captured(tail):
                start, finish = self.instance.operation(*request)
                raw = start()
                return "answer", finish(self.loop.run_until_complete(raw) if inspect.isawaitable(raw) else raw)
        except ToolMistake as error:
            return "mistake", str(error)
        except EnvironmentContractError as error:
            return "contract", str(error)
        except EnvironmentFault as error:
            return "fault", str(error)
        except BaseException as error:  # SystemExit too: the child goes on
            return "raised", (str(error), traceback_of(error) + (f"\nIt printed:\n{tail.text}" if tail.text else ""))
